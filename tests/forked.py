"Processes of their own that need not import what conftest.py has imported already"
import os,runpy,signal,socket,sys
from pathlib import Path

from conftest import FORKSERVER,write_to

def _command(words, **env):
    os.environ |= env
    from ivgr.tools.cli import main
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have turned it off
    signal.signal(signal.SIGHUP, signal.SIG_DFL)              # and `nohup` this one
    sys.exit(main(words))

def _script(path, words, **env):
    os.environ |= env
    sys.argv = [path, *words]
    runpy.run_path(path, run_name="__main__")

def _said(path, work, *args, **env):
    write_to(path)
    work(*args, **env)

class Forked:
    "Work that goes on beside the test"
    def __init__(self, said, work, *args, **env): # File for what it prints; a function of a module
        self.said = Path(said)
        self.said.touch()
        self.process = FORKSERVER.Process(target=_said, args=(str(said), work, *args), kwargs=env, daemon=True)
        self.process.start()
    def running(self): return self.process.is_alive()
    def send(self, number): os.kill(self.process.pid, number)
    def end(self, seconds=240):
        "Its exit status, and what it printed"
        self.process.join(seconds)
        assert not self.running(), f"still running after {seconds} s"
        return self.process.exitcode,self.said.read_text()
    def finish(self):
        "What it printed, if all went well"
        status,text = self.end()
        assert status==0, text
        return text

def command(said, *words): # What comes after `ivgr`
    return Forked(said, _command, [str(w) for w in words])

def _ranks():
    "What tells two processes of each other, as `accelerate launch` does"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        env = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(s.getsockname()[1]), NO_PROXY="*")
    return [dict(env, RANK=rank, LOCAL_RANK=rank) for rank in "01"]

def pair(said, *words): # What comes after `ivgr`
    "A command in two processes that know of each other"
    return [Forked(f"{said}-{env['RANK']}", _command, [str(w) for w in words], **env) for env in _ranks()]

def both(said, script, *words):
    "Run a script of this folder in two processes that know of each other"
    two = [Forked(said, _script, str(Path(__file__).parent/script), [str(w) for w in words], **env) for env in _ranks()]
    try:
        for p in two: p.finish()
    finally:
        for p in two: p.process.kill()  # where it hangs, or the other one has failed
