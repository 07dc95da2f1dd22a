"""The machines that guests can be, and what differs between them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """name: as uname(1) says; debian: Debian's name; package: of the emulator; emulator: how its command begins;
    console: the kernel's name of the serial port; append: more for the kernel's command line"""

    name: str
    debian: str
    package: str
    emulator: str
    console: str
    append: str = ""


# Where this machine is busy, TCG fails amd64's test of the timer.
MACHINES = {
    machine.debian: machine
    for machine in (
        Machine("x86_64", "amd64", "qemu-system-x86", "qemu-system-x86_64 -cpu max", "ttyS0", "no_timer_check"),
        Machine("aarch64", "arm64", "qemu-system-arm", "qemu-system-aarch64 -machine virt -cpu cortex-a72", "ttyAMA0"),
    )
}
