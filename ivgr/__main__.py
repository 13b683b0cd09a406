"""`python -m ivgr` is `ivgr`, for when the scripts of an environment are not on the path."""
from ivgr.tools.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
