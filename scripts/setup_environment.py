"""Make .venv and install the project into it, once per change of pyproject.toml or constraints.txt.

Runs under whatever Python the machine has, so it uses nothing but the standard library and syntax that any Python
3 still met can parse; the first thing it does is to say if that Python is too old.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time

MINIMUM = (3, 11)
NEEDED_GB = 5
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "installed")
PYTHON = os.path.join(VENV, "bin", "python")


def main():
    check_python(sys.version_info)
    wanted = fingerprint()
    if read(STAMP) == wanted and os.path.exists(PYTHON):
        return
    check_disk(shutil.disk_usage(ROOT).free)
    started = time.time()
    print("Setting up .venv (a few minutes, once). Packages come with versions pinned in constraints.txt.", flush=True)
    make_venv()
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
    install = ["install", "--progress-bar", "on" if sys.stdout.isatty() else "off"]
    run(pip + install + ["-c", "constraints.txt", "-e", ".[dev]"])
    with open(STAMP, "w") as stream:
        stream.write(wanted)
    print(f"Set-up done in {time.time() - started:.0f} s.", flush=True)


def check_python(version):
    if tuple(version[:2]) < MINIMUM:
        stop(
            f"Python {MINIMUM[0]}.{MINIMUM[1]} or newer is needed, {sys.executable} is {version[0]}.{version[1]}. "
            "Install a newer one and run `make PYTHON=/path/to/python3.12 ...`"
        )


def check_disk(free_bytes):
    if free_bytes < NEEDED_GB * 10**9:
        stop(
            f"{ROOT} has {free_bytes / 1e9:.1f} GB of free disk, about {NEEDED_GB} GB are needed (PyTorch and "
            "JupyterLab). Free some space; the README says how to install the smaller CPU build of PyTorch"
        )


def make_venv():
    try:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        detail = (error.stdout + error.stderr).strip().splitlines()
        reason = detail[0] if detail else "no message"
        stop(f"cannot make a virtual environment ({reason}). On Debian or Ubuntu: apt install python3-venv")


def run(command):
    if subprocess.call(command, cwd=ROOT) != 0:
        stop(f"`{' '.join(command)}` failed; the lines above say why. `make` again continues where it stopped")


def fingerprint():
    digest = hashlib.sha256(repr(sys.version_info[:3]).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update(read(os.path.join(ROOT, name)).encode())
    return digest.hexdigest()


def read(path):
    if not os.path.exists(path):
        return ""
    with open(path) as stream:
        return stream.read()


def stop(sentence):
    sys.stderr.write(f"smml: {sentence}.\n")
    sys.exit(1)


if __name__ == "__main__":
    main()
