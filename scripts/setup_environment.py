"""Make .venv and install the project into it, once per change of pyproject.toml or constraints.txt.

With --oldest, make .venv-oldest, with the lowest versions that pyproject.toml allows instead of those pinned.

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


def main():
    check_python(sys.version_info)
    if "--oldest" in sys.argv[1:]:
        check_lowest(sys.version_info)
        set_up(os.path.join(ROOT, ".venv-oldest"), "the lowest versions that pyproject.toml allows", oldest)
    else:
        set_up(os.path.join(ROOT, ".venv"), "versions pinned in constraints.txt", pinned)


def set_up(folder, words, install):
    stamp, python = os.path.join(folder, "installed"), os.path.join(folder, "bin", "python")
    wanted = fingerprint()
    if read(stamp) == wanted and os.path.exists(python):
        return
    check_disk(shutil.disk_usage(ROOT).free)
    started = time.time()
    print(f"Setting up {os.path.basename(folder)} (a few minutes, once). Packages come with {words}.", flush=True)
    make_venv(folder)
    install(python)
    with open(stamp, "w") as stream:
        stream.write(wanted)
    print(f"Set-up done in {time.time() - started:.0f} s.", flush=True)


def pinned(python):
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    bar = ["--progress-bar", "on" if sys.stdout.isatty() else "off"]
    run([*pip, "install", *bar, "-c", "constraints.txt", "-e", ".[dev]"])


def oldest(python):
    # pip has no word for the lowest versions, uv has.
    run([python, "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off", "uv>=0.9"])
    run([python, "-m", "uv", "pip", "install", "--python", python, "--resolution", "lowest-direct", "-e", ".[dev]"])


def check_python(version):
    if tuple(version[:2]) < MINIMUM:
        stop(
            f"Python {MINIMUM[0]}.{MINIMUM[1]} or newer is needed, {sys.executable} is {version[0]}.{version[1]}. "
            "Install a newer one and run `make PYTHON=/path/to/python3.12 ...`"
        )


def check_lowest(version):
    if tuple(version[:2]) != MINIMUM:
        wanted = f"{MINIMUM[0]}.{MINIMUM[1]}"
        stop(
            f"the lowest versions are those for Python {wanted}, {sys.executable} is another one. "
            f"Run `make OLDEST_PYTHON=/path/to/python{wanted} test-oldest`"
        )


def check_disk(free_bytes):
    if free_bytes < NEEDED_GB * 10**9:
        stop(
            f"{ROOT} has {free_bytes / 1e9:.1f} GB of free disk, about {NEEDED_GB} GB are needed (PyTorch and "
            "JupyterLab). Free some space; the README says how to install the smaller CPU build of PyTorch"
        )


def make_venv(folder):
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, text=True)
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
