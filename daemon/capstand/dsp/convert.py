"""Samples as ALSA packs them ↔ numpy integers. Full scale is that of the format."""

from typing import Any

import numpy as np
import numpy.typing as npt

from capstand.audio.block import SampleFormat

Int32 = npt.NDArray[np.int32]
FAR = 1e6
"""120 dB beyond full scale: no sound, but what a broken device or its driver may bring."""


def to_int32(samples: bytes | memoryview, sample: SampleFormat) -> Int32:
    """Packed samples as 32-bit integers, left-justified: full scale is ±2³¹. Shape: flat."""
    match sample:
        case SampleFormat.S16_LE:
            return np.frombuffer(samples, "<i2").astype(np.int32) << 16
        case SampleFormat.S24_LE:
            return np.frombuffer(samples, "<i4") << 8
        case SampleFormat.S24_3LE:
            packed = np.frombuffer(samples, np.uint8)
            wide = np.zeros(len(packed) // 3 * 4, np.uint8)
            for byte in range(3):  # by columns: a third of the time that rows of three take
                wide[1 + byte :: 4] = packed[byte::3]
            return wide.view("<i4")
        case SampleFormat.S32_LE:
            return np.frombuffer(samples, "<i4")
        case SampleFormat.S16_BE:
            return np.frombuffer(samples, ">i2").astype(np.int32) << 16
        case SampleFormat.S20_3LE:
            return to_int32(samples, SampleFormat.S24_3LE) << 4
        case SampleFormat.FLOAT_LE:
            whole = np.rint(to_float32(samples, sample).astype(np.float64) * 2.0**31)
            return np.clip(whole, -(2.0**31), 2.0**31 - 1).astype(np.int32)
        case SampleFormat.U8:
            return (np.frombuffer(samples, np.uint8) ^ 0x80).astype(np.int32) << 24


def from_int32(values: Int32, sample: SampleFormat) -> bytes:
    """The reverse of ``to_int32``; lower bits are cut off."""
    match sample:
        case SampleFormat.S16_LE:
            return (values >> 16).astype("<i2").tobytes()
        case SampleFormat.S24_LE:
            return (values >> 8).astype("<i4").tobytes()
        case SampleFormat.S24_3LE:
            packed = np.ascontiguousarray(values.astype("<i4")).view(np.uint8).reshape(-1, 4)
            return packed[:, 1:].tobytes()
        case SampleFormat.S32_LE:
            return values.astype("<i4").tobytes()
        case SampleFormat.S16_BE:
            return (values >> 16).astype(">i2").tobytes()
        case SampleFormat.S20_3LE:
            return from_int32(values >> 4, SampleFormat.S24_3LE)
        case SampleFormat.FLOAT_LE:
            return (values.astype(np.float64) * 2.0**-31).astype("<f4").tobytes()
        case SampleFormat.U8:
            return ((values >> 24) + 128).astype(np.uint8).tobytes()


def from_float(values: npt.NDArray[np.floating[Any]], sample: SampleFormat) -> bytes:
    """Values within ±1.0 as packed samples, rounded to the format's bits; beyond, clipped."""
    if sample is SampleFormat.FLOAT_LE:
        return np.asarray(np.clip(values, -1, 1), "<f4").tobytes()
    scale = 2.0 ** (sample.bits - 1)
    if sample is SampleFormat.S16_LE:  # the usual one; np.clip takes as long as all of this
        scaled = values * np.float32(scale)
        np.rint(scaled, out=scaled)
        np.minimum(scaled, scale - 1, out=scaled)
        np.maximum(scaled, -scale, out=scaled)
        return scaled.astype("<i2").tobytes()
    whole = np.clip(np.rint(values * scale), -scale, scale).astype(np.int64)
    np.minimum(whole, int(scale) - 1, out=whole)  # as a float32, 2³¹ − 1 would be 2³¹
    return from_int32((whole << (32 - sample.bits)).astype(np.int32).reshape(-1), sample)


def to_float32(samples: bytes | memoryview, sample: SampleFormat) -> npt.NDArray[np.float32]:
    """Packed samples within ±1.0; 24 bits fit without loss. Shape: flat. Floats may be beyond,
    up to ``FAR``, which can still be squared and summed up; one that is no number is 0.
    """
    if sample is SampleFormat.FLOAT_LE:
        values = np.nan_to_num(np.frombuffer(samples, "<f4"), nan=0.0, posinf=1.0, neginf=-1.0)
        return np.asarray(np.clip(values, -FAR, FAR), np.float32)
    if sample is SampleFormat.S16_LE:
        floats = np.frombuffer(samples, "<i2").astype(np.float32)
        floats *= np.float32(2.0**-15)
        return floats
    return to_int32(samples, sample).astype(np.float32) * np.float32(2.0**-31)


def to_s16(samples: bytes | memoryview, sample: SampleFormat) -> bytes:
    """Packed samples as S16_LE, rounded to the nearest, full scale kept within."""
    values = np.minimum(to_int32(samples, sample), 0x7FFF7FFF)  # so that half more does not wrap
    values += 0x8000
    return values.view("<i2")[1::2].tobytes()


def convert(samples: bytes | memoryview, sample: SampleFormat, to: SampleFormat) -> bytes:
    """Packed samples in another format: to the bit where it has as many, else rounded to the
    nearest, full scale kept within."""
    if to is SampleFormat.S16_LE:
        return to_s16(samples, sample)
    values = to_int32(samples, sample)
    if to not in (SampleFormat.S32_LE, SampleFormat.FLOAT_LE):
        half = 1 << (31 - to.bits)
        values = np.minimum(values, 0x7FFFFFFF - half) + half
    return from_int32(values, to)
