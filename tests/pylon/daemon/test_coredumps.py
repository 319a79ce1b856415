from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = """
import ctypes, resource, subprocess, sys
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (min(hard, 1 << 20) if hard >= 0 else 1 << 20, hard))
from pylon.daemon.coredumps import forbid_core_dumps
forbid_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE))
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) if sys.platform.startswith("linux") else 0)
child = "import resource; print(resource.getrlimit(resource.RLIMIT_CORE))"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout.strip())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no core files")
def test_a_process_that_holds_keys_leaves_no_image():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["(0, 0)", "0", "(0, 0)"], done.stderr
