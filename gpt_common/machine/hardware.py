"""Which machine is this: chip, cores, memory, power, heat. No framework, no administrator rights.

macOS is asked through its own commands, Linux through /proc and /sys, NVIDIA through its driver. Everything is
optional: a command that is missing, slow or speaks a new dialect leaves its field None or "unknown".
The parsers are pure functions of the text they are given.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from gpt_common.machine.peaks import Peak, apple_peak, nvidia_peak

PowerSource = Literal["ac", "battery", "unknown"]


@dataclass(frozen=True)
class Hardware:
    """What a result was measured on."""

    chip: str = "unknown"
    """What computes: "Apple M3 Max", "AMD EPYC 9654", "NVIDIA H200"."""
    kind: Literal["apple", "cuda", "cpu"] = "cpu"
    """Apple silicon, an NVIDIA GPU, or a processor only."""
    cpu: str = "unknown"
    """The processor; equal to `chip` where that is no separate GPU."""
    cores: int | None = None
    """Physical processor cores."""
    core_kinds: dict[str, int] = field(default_factory=dict)
    """Cores by kind, as the system calls them: {"Performance": 12, "Efficiency": 4}."""
    gpu_cores: int | None = None
    """Cores of an Apple GPU."""
    memory_bytes: int | None = None
    """Main memory, or the share of it that a container may use."""
    os: str = "unknown"
    """System and version."""
    power_source: PowerSource = "unknown"
    """Mains or battery."""
    low_power_mode: bool | None = None
    """Whether the system saves power at the cost of speed."""


def macos_version() -> str:
    """As the system itself says, "26.2": a Python that was built before macOS 26 is told 16.0 (cpython#135675)."""
    said = _output("sw_vers", "-productVersion").strip()
    return said or platform.mac_ver()[0]


def detect() -> Hardware:
    """This machine. Reads files on Linux (a few milliseconds), runs five commands on macOS; never raises."""
    system = platform.system()
    if system == "Darwin":
        return parse_macos(
            sysctl=_output("sysctl", *MACOS_SYSCTLS),
            displays=_output("system_profiler", "SPDisplaysDataType", "-json"),
            battery=_output("pmset", "-g", "ps"),
            settings=_output("pmset", "-g"),
            version=macos_version(),
        )
    if system == "Linux":
        cpuinfo = _text("/proc/cpuinfo")
        return parse_linux(
            cpuinfo=cpuinfo,
            # Arm's /proc/cpuinfo has no names; lscpu knows the numbers. It takes longer than reading a file.
            lscpu="" if "model name" in cpuinfo else _output("lscpu"),
            meminfo=_text("/proc/meminfo"),
            memory_limit=_text("/sys/fs/cgroup/memory.max") or _text("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
            supplies={path.parent.name: _text(path) for path in Path("/sys/class/power_supply").glob("*/uevent")},
            profile=_text("/sys/firmware/acpi/platform_profile"),
            gpus=_nvidia_gpus(),
            release=f"{_os_release(_text('/etc/os-release'))}, kernel {platform.release()}",
        )
    return Hardware(chip=platform.processor() or "unknown", cpu=platform.processor() or "unknown", os=system)


def probably_has_gpu() -> bool:
    """Whether a framework would find a GPU, as far as can be seen in an instant: Apple silicon, or NVIDIA's driver."""
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return apple or Path("/dev/nvidiactl").exists()


def published_peak(hardware: Hardware, device: str, dtype: str) -> Peak | None:
    """The peak published for what computes, or None if unknown: there is no default.

    Args:
        device: "cpu" (always None: a processor's rate depends on its clock under load and on matrix units that
            vendors do not specify), or "gpu", "mps", "cuda" for the GPU.
        dtype: "float32", "float16", "bfloat16", or "tfloat32" on NVIDIA.
    """
    if device != "cpu" and hardware.kind == "apple":
        return apple_peak(hardware.chip, hardware.gpu_cores, dtype)
    if device != "cpu" and hardware.kind == "cuda":
        return nvidia_peak(hardware.chip, dtype)
    return None


def thermal_pressure() -> str | None:
    """How much macOS slows the machine down because it is hot: "nominal" or a level above it; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    return parse_thermal_pressure(_output("notifyutil", "-g", "com.apple.system.thermalpressurelevel"))


def wired_limit() -> int | None:
    """Bytes that the owner of this Mac lets its GPU hold, if that was set; None where the system decides, as from the
    start, and elsewhere."""
    if platform.system() != "Darwin":
        return None
    return parse_wired_limit(_output("sysctl", "iogpu.wired_limit_mb"))


# --- macOS

MACOS_SYSCTLS = (
    "machdep.cpu.brand_string",
    "hw.memsize",
    "hw.physicalcpu",
    *(f"hw.perflevel{level}.{key}" for level in range(3) for key in ("name", "physicalcpu")),
)


def parse_macos(sysctl: str, displays: str, battery: str, settings: str, version: str) -> Hardware:
    """Hardware from `sysctl NAME...`, `system_profiler SPDisplaysDataType -json`, `pmset -g ps` and `pmset -g`."""
    values = dict(re.findall(r"^([\w.]+): *(.*?) *$", sysctl, re.MULTILINE))
    gpu = _apple_gpu(displays)
    # Under Rosetta the processor calls itself VirtualApple; the GPU still bears the chip's name.
    chip = gpu.get("sppci_model", "") or values.get("machdep.cpu.brand_string") or "unknown"
    kinds = {}
    for level, fallback in enumerate(("Performance", "Efficiency", "Level 2")):
        if (count := _integer(values.get(f"hw.perflevel{level}.physicalcpu"))) is not None:
            kinds[values.get(f"hw.perflevel{level}.name", fallback)] = count
    return Hardware(
        chip=chip,
        kind="apple" if chip.startswith("Apple") else "cpu",
        cpu=chip,
        cores=_integer(values.get("hw.physicalcpu")),
        core_kinds=kinds,
        gpu_cores=_integer(gpu.get("sppci_cores")),
        memory_bytes=_integer(values.get("hw.memsize")),
        os=f"macOS {version}".strip(),
        power_source=_macos_power_source(battery),
        low_power_mode=_macos_low_power(settings),
    )


def parse_thermal_pressure(notifyutil: str) -> str | None:
    """The level in `notifyutil -g com.apple.system.thermalpressurelevel`, by Apple's name for it."""
    levels = ("nominal", "moderate", "heavy", "trapping", "sleeping")
    words = notifyutil.split()
    level = _integer(words[-1]) if words else None
    return levels[level] if level is not None and 0 <= level < len(levels) else None


def parse_wired_limit(sysctl: str) -> int | None:
    """Bytes in `sysctl iogpu.wired_limit_mb`, which is 0 where the system decides."""
    found = re.search(r"^iogpu\.wired_limit_mb: *(\d+) *$", sysctl, re.MULTILINE)
    return int(found[1]) * 2**20 or None if found else None


def _apple_gpu(displays: str) -> dict[str, str]:
    """The entry of an Apple GPU in system_profiler's JSON; empty if there is none (Intel, virtual machine)."""
    try:
        entries = json.loads(displays)["SPDisplaysDataType"]
        return next((e for e in entries if re.match(r"Apple M\d", e.get("sppci_model", ""))), {})
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _macos_power_source(battery: str) -> PowerSource:
    """From `Now drawing from 'AC Power'`, the first line of `pmset -g ps`."""
    if "'AC Power'" in battery:
        return "ac"
    return "battery" if "'Battery Power'" in battery or "'UPS Power'" in battery else "unknown"


def _macos_low_power(settings: str) -> bool | None:
    """From `pmset -g`: `lowpowermode 0|1`, or `powermode 0|1|2` (automatic, low, high) where there is a high mode."""
    found = re.search(r"^ *(?:low)?powermode +(\d)", settings, re.MULTILINE)
    return found.group(1) == "1" if found else None


# --- Linux


def parse_linux(
    *,
    cpuinfo: str,
    lscpu: str = "",
    meminfo: str = "",
    memory_limit: str = "",
    supplies: dict[str, str] | None = None,
    profile: str = "",
    gpus: list[str] | None = None,
    release: str = "Linux",
) -> Hardware:
    """Hardware from the texts of /proc/cpuinfo, lscpu, /proc/meminfo, the control group's limit, the uevent file of
    each power supply, the ACPI platform profile, and the names of the NVIDIA GPUs."""
    named = re.search(r"^model name\s*: *(.+?) *$", cpuinfo, re.MULTILINE) or re.search(
        r"^ *Model name: *(.+?) *$", lscpu, re.MULTILINE
    )
    cpu = " ".join(named.group(1).split()) if named else platform.machine() or "unknown"
    total = re.search(r"^MemTotal: *(\d+) kB", meminfo, re.MULTILINE)
    sizes = [int(total.group(1)) * 1024] if total else []
    if (limit := _integer(memory_limit)) is not None:
        sizes.append(limit)
    # Different GPUs side by side make a name that no table knows: which one computes is not ours to guess.
    gpu = " + ".join(dict.fromkeys(gpus or []))
    return Hardware(
        chip=gpu or cpu,
        kind="cuda" if gpu else "cpu",
        cpu=cpu,
        cores=_linux_cores(cpuinfo, lscpu),
        memory_bytes=min(sizes, default=None),
        os=release,
        power_source=_linux_power_source(supplies or {}),
        low_power_mode=profile.strip() == "low-power" if profile.strip() else None,
    )


def _linux_cores(cpuinfo: str, lscpu: str) -> int | None:
    """Physical cores: different pairs of package and core, or lscpu's product, or processors without either."""
    pairs = re.findall(r"^physical id\s*: (\d+)$.*?^core id\s*: (\d+)$", cpuinfo, re.MULTILINE | re.DOTALL)
    if pairs:
        return len(set(pairs))
    per_group = re.search(r"^ *Core\(s\) per (?:socket|cluster): *(\d+)", lscpu, re.MULTILINE)
    groups = re.search(r"^ *(?:Socket|Cluster)\(s\): *(\d+)", lscpu, re.MULTILINE)
    if per_group and groups:
        return int(per_group.group(1)) * int(groups.group(1))
    return len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or None


def _linux_power_source(supplies: dict[str, str]) -> PowerSource:
    """From the uevent files in /sys/class/power_supply: a mains supply that is on, or a battery that empties."""
    texts = supplies.values()
    if any("POWER_SUPPLY_TYPE=Mains" in t and "POWER_SUPPLY_ONLINE=1" in t for t in texts):
        return "ac"
    if any("POWER_SUPPLY_TYPE=Battery" in t and "POWER_SUPPLY_STATUS=Discharging" in t for t in texts):
        return "battery"
    return "unknown"


def _nvidia_gpus() -> list[str]:
    """Names of the NVIDIA GPUs: from the driver's files, which are quick, or from nvidia-smi (in WSL, for one)."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return parse_nvidia_files(map(_text, files)) or [name for name, _ in nvidia_smi()]


def parse_nvidia_files(texts: Iterable[str]) -> list[str]:
    """The models that the driver's files name, one each; tabs stand between `Model:` and the name."""
    return [m.group(1) for text in texts if (m := re.search(r"^Model:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE))]


def memory_for(hardware: Hardware, device: str) -> int | None:
    """Bytes that what computes on a device can have: an NVIDIA GPU has memory of its own, the first one's counts.

    Args:
        device: "cpu", or anything else for the GPU.
    """
    if hardware.kind != "cuda" or device == "cpu":
        return hardware.memory_bytes
    found = nvidia_smi()
    return found[0][1] if found else None


@cache
def nvidia_smi() -> list[tuple[str, int]]:
    """Name and memory in bytes of each NVIDIA GPU; empty without nvidia-smi. Up to a second, once in a process."""
    return parse_nvidia_smi(query_nvidia_smi("name,memory.total"))


def query_nvidia_smi(fields: str) -> str:
    """What nvidia-smi says of each GPU, a line for each; "" without it."""
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")


def parse_nvidia_smi(text: str) -> list[tuple[str, int]]:
    """Rows `NVIDIA H200, 143771` (MiB) as name and bytes; what is not such a row is left out."""
    rows = re.findall(r"^(.+), *(\d+) *$", text, re.MULTILINE)
    return [(name.strip(), int(mib) * 2**20) for name, mib in rows]


def _os_release(text: str) -> str:
    """PRETTY_NAME of /etc/os-release."""
    found = re.search(r'^PRETTY_NAME="?(.*?)"?$', text, re.MULTILINE)
    return found.group(1) if found else "Linux"


# --- reading


def _output(*command: str) -> str:
    """What a command prints, whatever its exit code (sysctl fails if one of many names is unknown); "" if none."""
    # The second: sw_vers says 16.0 on macOS 26 to programs that were built before it, unless asked not to.
    environment = {**os.environ, "LC_ALL": "C", "SYSTEM_VERSION_COMPAT": "0"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, env=environment, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")


def _text(path: str | Path) -> str:
    """A small file, or "" if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _integer(text: str | None) -> int | None:
    """`text` as an integer, or None."""
    try:
        return int(text) if text else None
    except ValueError:
        return None
