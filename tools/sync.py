"""Fail unless notebooks, modules and README.md, as committed, agree.

Cleans the notebooks, deletes the modules and exports them anew: whatever git then sees (a module edited by hand, one
whose notebook is gone, a notebook that was not exported or cleaned) is out of step. Needs a tree with nothing to
commit, since deleting a module would lose an edit that git does not have."""
import os,subprocess,sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKER = r'^[ "`]*(<{7}|>{7})( |$)'  # also as Jupyter or nbdev store them, inside the strings of a notebook

def git(*args, ok=(0,)):
    r = subprocess.run(['git', *args], cwd=ROOT, capture_output=True, text=True)
    if r.returncode not in ok: sys.exit(f"git {' '.join(args)}: {r.stderr.strip()}")
    return r.stdout.strip()

def status(): return git('status', '--porcelain', '--untracked-files=all')

def main():
    if dirty := status(): sys.exit(f"Commit first, these are not:\n{dirty}")
    if found := git('grep', '-nIE', MARKER, ok=(0,1)): sys.exit(f"Conflict markers:\n{found}")

    os.chdir(ROOT)
    os.environ.pop('IN_TEST', None)  # nbdev_export does nothing inside its own tests
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export
    from nbdev.quarto import refresh_quarto_yml
    nbdev_clean.__wrapped__()
    for p in (ROOT/'ivgr').rglob('*.py'):
        if p.name not in ('__init__.py', '__main__.py'): p.unlink()
    nbdev_export.__wrapped__()
    refresh_quarto_yml()  # nbs/nbdev.yml, from settings.ini
    if off := status():
        sys.exit(f"Not what the notebooks give:\n{off}\n{git('diff', '--stat')}\n"
                 "Edit the notebook, never the module; then `make prep` and commit. `git diff` shows the changes.")

    import readme
    if diff := readme.stale()[0]:
        sys.exit(f"{', '.join(diff)}: not what nbs/index.ipynb says; run `make readme` and commit the result")
    print("Notebooks, modules and README.md agree.")

if __name__=='__main__': main()
