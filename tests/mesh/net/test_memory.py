"""mesh/net/memory.py: what is freed stays with the process until it is given back."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from mesh.net.memory import give_back, keep_freed, resident_bytes

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def messages():
    return [bytearray(b"x") * 600_000 for _ in range(16)]

keep_freed()
messages()
before = faults()
for _ in range(20):
    messages()
print(faults() - before)
freed = resident_bytes()
give_back()
print(freed - resident_bytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it asks the system for page faults")
def test_memory_of_large_messages_is_used_again_and_given_back_when_asked() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    faults, given_back = map(int, done.stdout.split())
    assert faults < 2000, "20 times 16 messages have 47,000 pages"
    assert given_back > 4 << 20
