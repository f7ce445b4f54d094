"""Agora's real-time channels, with sound of your own: the custom audio source."""

from capstand.agora.frames import SampleBuffer
from capstand.agora.sdk.codes import AgoraError, Code, Reason
from capstand.agora.source import CustomAudioSource, SessionFigures

__all__ = ["AgoraError", "Code", "CustomAudioSource", "Reason", "SampleBuffer", "SessionFigures"]
