import logging

__version__ = "0.1.0"

# A kernel that it wants on newer CPUs, `keep_trainable` never calls
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
