"""A Debian 12 machine with systemd and a kernel sound card, emulated by qemu, in which the tests
install the daemon.

`build` makes the image once; every Guest starts from it as new, on a disk overlay of its own.
Commands go through qemu's guest agent, files through a shared folder (/mnt/host in the guest) or
the agent. The card is snd-aloop: what `player` plays into hw:Loopback,0,0 is captured from
hw:Loopback,1,0. The guest has no network; pip finds what the project requires in /opt/wheelhouse.

    with Guest(folder) as guest:
        guest.start(share)
        guest.push_source()
        guest.run("/root/capstand/scripts/install", timeout_s=300)
        guest.wait_until("systemctl is-active capstand", timeout_s=60)

CAPSTAND_GUEST_ACCEL=kvm uses hardware virtualisation, where it works; emulation is the default.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .wire import Wire, WireError

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
MEMORY = Path("/dev/shm")
MOST_WRITTEN = 4_000_000_000
"""Bytes: more than any of these machines writes."""

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "PIP_NO_INDEX": "1",
    "PIP_FIND_LINKS": "/opt/wheelhouse",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}


class GuestError(RuntimeError):
    """The guest did not do what was asked of it; the text ends with what it said last."""


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code (128 + N after signal N), and what it wrote."""

    rc: int
    out: str
    err: str


class Job:
    """A command that runs in the guest beside the test; made by Guest.spawn."""

    def __init__(self, guest: Guest, command: str, pid: int) -> None:
        self.pid = pid
        self._guest = guest
        self._command = command
        self._result: Result | None = None

    @property
    def running(self) -> bool:
        return self._poll() is None

    def wait(self, timeout_s: float) -> Result:
        """What the command wrote, once it has ended and closed its output."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.02
        with self._guest.going():
            while (result := self._poll()) is None:
                if time.monotonic() > deadline:
                    raise self._guest.error(f"still running after {timeout_s} s: {self._command}")
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 0.1 if self._guest.own_time else 0.5)
        return result

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30) -> Result:
        """Signals the command's own process and waits for its end."""
        self._guest.run(f"kill -{int(number)} {self.pid}", check=False)
        return self.wait(timeout_s)

    def _status(self) -> Any:
        """A question that is under way while the machine's devices are suspended may be lost; it is
        asked again when the machine answers."""
        try:
            return self._guest.agent("guest-exec-status", pid=self.pid)
        except GuestError:
            if not self._guest.answers(60):
                raise
            return self._guest.agent("guest-exec-status", pid=self.pid)

    def _poll(self) -> Result | None:
        if self._result is None:
            status = self._status()
            if status["exited"]:
                rc = status["exitcode"] if "exitcode" in status else 128 + status.get("signal", 0)
                out, err = (
                    base64.b64decode(status.get(key, "")) for key in ("out-data", "err-data")
                )
                self._result = Result(
                    rc, out.decode(errors="replace"), err.decode(errors="replace")
                )
        return self._result


class Guest:
    """One emulated machine and its disk. Leaves no qemu behind: not after close(), an exception, or
    our own death.

    With own_time the machine's clock counts its instructions and runs only while a command is under
    way or waited for: however busy the host is, no time passes in it that it did not have. But
    while it waits for the host's disk, its time runs as fast as it can: its own disk is in memory.

    folder receives serial.log and the disk overlay; packages are Debian's, beside those that every
    guest has, and make an image of their own. Start it from the main thread: qemu is killed
    when the thread that started it ends.
    """

    def __init__(self, folder: Path, packages: Sequence[str] = (), own_time: bool = False) -> None:
        self.folder = folder
        self.own_time = own_time
        self.packages = packages
        self.serial_log = folder / "serial.log"
        self.share = folder
        self.boot_s = 0.0
        self._image = folder
        self._overlay = folder / "disk.qcow2"
        if own_time and shutil.disk_usage(MEMORY).free > MOST_WRITTEN:
            self._overlay = MEMORY / f"capstand-{os.getpid()}-{id(self):x}.qcow2"
        self._sockets = Path(
            tempfile.mkdtemp(prefix="capstand-")
        )  # short: unix socket paths end at 107 bytes
        self._qemu: subprocess.Popen[bytes] | None = None
        self._agent: Wire | None = None
        self._monitor: Wire | None = None
        self._going = 0
        atexit.register(self.close)

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The machine

    @property
    def pid(self) -> int:
        """qemu's."""
        assert self._qemu is not None
        return self._qemu.pid

    def start(self, share: Path, timeout_s: float = 240) -> None:
        """Boots a fresh machine; share is /mnt/host in it, writable from both sides."""
        extra = ["--with", *self.packages] if self.packages else []
        built = subprocess.run(
            [str(HERE / "build"), *extra], stdout=subprocess.PIPE, text=True, check=True
        )
        self._image = Path(built.stdout.strip())
        self.share = share
        share.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.serial_log.unlink(missing_ok=True)
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b"]
        subprocess.run([*create, self._image / "disk.img", self._overlay], check=True)
        self.boot(timeout_s)

    def boot(self, timeout_s: float = 240) -> None:
        """Boots the machine with the disk as it is, after power_cut() or shutdown()."""
        if self._qemu is not None:
            raise GuestError("the guest is running")
        began = time.monotonic()
        # setpriv: whatever ends this process, a SIGKILL too, ends qemu with it.
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *self._qemu_options()]
        with (self.folder / "qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._agent = self._connect("agent", began + timeout_s)
            self._monitor = self._connect("monitor", began + timeout_s)
            self._monitor.call("qmp_capabilities")
            while not self._agent.synchronise(timeout_s=1):
                if self._qemu.poll() is not None or time.monotonic() > began + timeout_s:
                    raise self.error("the guest's agent does not answer")
            state = self.run(
                "systemctl is-system-running --wait", timeout_s=timeout_s, check=False
            ).out.strip()
            if state != "running":
                failed = self.run("systemctl --failed --no-legend --plain", check=False).out
                raise self.error(f"the guest's systemd is {state}:\n{failed}")
        except BaseException:
            self.power_cut()
            raise
        self.boot_s = time.monotonic() - began

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """With own_time, time passes in the machine meanwhile, and only then."""
        self._going += 1
        self._let_go(True)
        try:
            yield
        finally:
            self._going -= 1
            self._let_go(self._going > 0)

    def _let_go(self, on: bool) -> None:
        if self.own_time and self._qemu is not None:
            self._qemu.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    def shutdown(self, timeout_s: float = 120) -> None:
        """An orderly power-off: services are stopped, the disk is unmounted."""
        assert self._qemu is not None
        with self.going():
            self.agent("guest-exec", path="/bin/systemctl", arg=["poweroff"])
            try:
                self._qemu.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise self.error(f"the guest did not power off within {timeout_s} s") from None
        self.power_cut()

    def hold(self, seconds: float) -> None:
        """The whole machine stands still while time goes on, as when a host takes its processor."""
        assert self._qemu is not None
        self._qemu.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._qemu.send_signal(signal.SIGCONT)

    def insert_card(self) -> None:
        """A PCI sound card, AudioPCI, is put into its slot."""
        deadline = time.monotonic() + 20
        # Refused while the machine has not quite let go of the card that was there before.
        while said := self.human_monitor("device_add ES1370,id=card,audiodev=quiet"):
            if time.monotonic() > deadline:
                raise self.error(f"the card cannot be inserted: {said}")
            time.sleep(0.1)

    def remove_card(self) -> None:
        """It is taken out again, whoever uses it."""
        self.human_monitor("device_del card")
        self.wait_until("! test -e /proc/asound/AudioPCI", timeout_s=20)
        # The driver takes no more than 32 cards in its life, since it does not count those that go.
        self.wait_until("modprobe -r snd-ens1370", timeout_s=20)

    def suspend(self, seconds: float) -> float:
        """The machine suspends to idle, and a key wakes it; the time when it was awake."""
        with self._without_share():
            self.run("echo enabled > /sys/devices/platform/i8042/serio0/power/wakeup")
            asleep = self.spawn("echo freeze > /sys/power/state; date +%s.%N")
            time.sleep(seconds)
            self.human_monitor("sendkey a")
            return float(asleep.wait(60).out)

    def suspend_to_memory(self) -> float:
        """The machine suspends its devices and its clocks, for five seconds, as in S3; the time
        when it was awake. The last step, the firmware's, is left out: this one does not come back
        from it."""
        with self._without_share():
            self.run("echo core > /sys/power/pm_test")
            awake = self.run("echo mem > /sys/power/state; date +%s.%N", timeout_s=90).out
            self.run("echo none > /sys/power/pm_test")
            return float(awake)

    @contextlib.contextmanager
    def _without_share(self) -> Iterator[None]:
        """The driver of the shared folder does not survive that its device is suspended."""
        self.run("umount /mnt/host && modprobe -r 9p 9pnet_virtio")
        try:
            yield
        finally:
            self.run("modprobe 9pnet_virtio && mount /mnt/host")

    def power_cut(self) -> None:
        """Ends the machine without warning; what it had not yet written to its disk is lost."""
        for wire in (self._agent, self._monitor):
            if wire is not None:
                wire.close()
        self._agent = self._monitor = None
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
            self._qemu = None

    def close(self) -> None:
        """Ends the machine and drops its disk; the logs stay."""
        atexit.unregister(self.close)
        self.power_cut()
        self._overlay.unlink(missing_ok=True)
        shutil.rmtree(self._sockets, ignore_errors=True)

    # What happens in it

    def run(self, command: str, timeout_s: float = 60, check: bool = True) -> Result:
        """Runs a bash command as root. It is killed after timeout_s, which is an error whatever
        check says.

        A daemon that it leaves behind with its output open counts as part of it: use spawn for
        such.
        """
        limit_s = 10 * timeout_s if self.own_time else timeout_s
        result = self._spawn(["timeout", "-k", "5", str(limit_s), "bash", "-c", command]).wait(
            timeout_s + 30
        )
        if result.rc in (124, 137):
            raise self.error(f"timed out after {timeout_s} s: {command}\n{result.out}{result.err}")
        if check and result.rc:
            raise self.error(f"exit code {result.rc}: {command}\n{result.out}{result.err}")
        return result

    def spawn(self, command: str) -> Job:
        """Starts a bash command as root; `exec` at its front makes Job.stop reach the program
        itself.
        """
        return self._spawn(["bash", "-c", command])

    def wait_until(self, command: str, timeout_s: float) -> Result:
        """Repeats a command until it succeeds."""
        deadline = time.monotonic() + timeout_s
        while (result := self.run(command, check=False)).rc:
            if time.monotonic() > deadline:
                raise self.error(f"not within {timeout_s} s: {command}\n{result.out}{result.err}")
            time.sleep(0.2)
        return result

    def read_file(self, path: str) -> bytes:
        job = self._spawn(["base64", "-w0", path])
        result = job.wait(60)
        if result.rc:
            raise self.error(result.err.strip())
        return base64.b64decode(result.out)

    def write_file(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        data = content.encode() if isinstance(content, str) else content
        script = 'mkdir -p "$(dirname "$0")" && cat > "$0" && chmod "$1" "$0"'
        result = self._spawn(["bash", "-c", script, path, f"{mode:o}"], data).wait(60)
        if result.rc:
            raise self.error(result.err.strip())

    def push_source(self, target: str = "/root/capstand") -> None:
        """Copies the checkout as it is now, new files included and ignored ones not, to target in
        the guest.
        """
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=PROJECT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        archive = self.share / "source.tar"
        with tarfile.open(archive, "w") as tar:
            for name in filter(None, listed.split("\0")):
                if (PROJECT / name).is_symlink() or (PROJECT / name).exists():
                    tar.add(PROJECT / name, arcname=name, recursive=False)
        unpack = f"tar -xf /mnt/host/{archive.name} --no-same-owner -C {target}"
        self.run(f"rm -rf {target} && mkdir -p {target} && {unpack}")
        archive.unlink()

    def compile(self, name: str, *libraries: str) -> str:
        """Compiles NAME.c of this folder in the guest; the program's path there."""
        self.write_file(f"/root/{name}.c", (HERE / f"{name}.c").read_bytes())
        linked = " ".join(f"-l{library}" for library in libraries)
        build = f"gcc -O1 -Wall -Werror -o /root/{name} /root/{name}.c {linked}"
        self.run(f"{build} && sync", timeout_s=120)  # it is to survive a power cut
        return f"/root/{name}"

    # The ways in

    def agent(self, command: str, **arguments: Any) -> Any:
        """A command of the guest agent (guest-exec, guest-set-time, …), argument names with _ for
        -.
        """
        if self._agent is None:
            raise GuestError("the guest is not running")
        try:
            with self.going():
                return self._agent.call(command, **arguments)
        except WireError as error:
            raise self.error(f"agent: {error}") from error

    def answers(self, timeout_s: float) -> bool:
        """Whether the agent does within that time."""
        deadline = time.monotonic() + timeout_s
        with self.going():
            while self._agent is not None and time.monotonic() < deadline:
                if self._agent.synchronise(timeout_s=5):
                    return True
        return False

    def monitor(self, command: str, **arguments: Any) -> Any:
        """A command of the qemu machine protocol: stop, cont, query-status, …"""
        if self._monitor is None:
            raise GuestError("the guest is not running")
        with self.going():
            return self._monitor.call(command, **arguments)

    def human_monitor(self, command: str) -> str:
        """A line as typed in qemu's human monitor: `info registers`, `sendkey`, …"""
        return str(self.monitor("human-monitor-command", command_line=command))

    def error(self, text: str) -> GuestError:
        """An error that ends with the last lines of the serial console and of qemu's own log."""
        tails = [text]
        for log in (self.serial_log, self.folder / "qemu.log"):
            if log.exists() and (lines := log.read_text(errors="replace").splitlines()[-20:]):
                tails += [f"--- end of {log}", *lines]
        return GuestError("\n".join(tails))

    def _spawn(self, argv: list[str], data: bytes | None = None) -> Job:
        given = {} if data is None else {"input_data": base64.b64encode(data).decode()}
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        started = self.agent(
            "guest-exec",
            path="/usr/bin/env",
            arg=["-i", *environment, *argv],
            capture_output=True,
            **given,
        )
        return Job(self, " ".join(argv), started["pid"])

    def _connect(self, name: str, deadline: float) -> Wire:
        assert self._qemu is not None
        while True:
            try:
                return Wire(self._sockets / name)
            except OSError:
                if self._qemu.poll() is not None or time.monotonic() > deadline:
                    raise self.error(f"qemu did not open its {name} socket") from None
                time.sleep(0.05)

    def _qemu_options(self) -> list[str]:
        accelerator = os.environ.get("CAPSTAND_GUEST_ACCEL", "tcg")
        # Emulating -cpu max is up to twice as slow (wide vectors, string instructions, five-level
        # page tables), and its clock needs an exit per reading. Nehalem has what numpy's wheels
        # require (x86-64-v2).
        cpu = {
            "kvm": ["-accel", "kvm", "-cpu", "host"],
            "tcg": ["-accel", "tcg,thread=multi", "-cpu", "Nehalem"],
        }
        if self.own_time:
            cpu["tcg"] = ["-accel", "tcg,thread=single", "-cpu", "Nehalem"]
            cpu["tcg"] += ["-icount", "shift=2,sleep=off", "-rtc", "clock=vm"]
        for name in ("agent", "monitor"):
            (self._sockets / name).unlink(missing_ok=True)
        kernel_line = (
            "root=/dev/vda rw console=ttyS0 quiet mitigations=off init_on_alloc=0 panic=-1"
        )
        options = f"""
            -nodefaults -display none -no-reboot -m 2048 -smp {1 if self.own_time else 2} -net none
            -device virtio-rng-pci
            -serial file:{self.serial_log}
            -device virtio-serial
            -chardev socket,id=agent,path={self._sockets}/agent,server=on,wait=off
            -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
            -chardev socket,id=monitor,path={self._sockets}/monitor,server=on,wait=off
            -mon chardev=monitor,mode=control
            -audiodev none,id=quiet
        """.split()
        options += [
            "-kernel",
            f"{self._image}/vmlinux",
            "-initrd",
            f"{self._image}/initrd",
            "-append",
            kernel_line,
        ]
        options += ["-drive", f"file={self._overlay},format=qcow2,if=virtio,cache=unsafe"]
        options += ["-virtfs", f"local,path={self.share},mount_tag=host,security_model=none"]
        return [*cpu[accelerator], *options]
