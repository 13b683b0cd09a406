"A run that is killed at any moment, also in the middle of a save, loses nothing: resumed, it ends as if it had not been"
import os,signal,subprocess,sys,time

import pytest

from ivgr.data import write_needle

COMMON = ["--max_steps", "4", "--save_steps", "1", "--per_device_train_batch_size", "2", "--n_rollouts", "3", "--max_new_tokens", "40",
          "--learning_rate", "1e-3", "--use_cpu", "true", "--save_total_limit", "1"]

def start(data, out, *flags):
    code = "import sys; from ivgr.cli import main; sys.exit(main(sys.argv[1:]))"
    env = os.environ|{"OMP_NUM_THREADS":"1", "HF_HUB_OFFLINE":"1"}
    return subprocess.Popen([sys.executable, "-c", code, "train", "--data", str(data), "--output_dir", str(out), *COMMON, *flags],
                            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def finish(process):
    said,_ = process.communicate(timeout=240)
    assert process.returncode==0, said

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_needle(folder, "train", 12, progress=False)
    return folder

@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")/"run"
    finish(start(data, out))
    return out

def wait_for(path, process):
    for _ in range(12000):
        if path.exists() or process.poll() is not None: return
        time.sleep(.01)

@pytest.mark.parametrize("sign", ["checkpoint-2/model.safetensors", "checkpoint-3/optimizer.pt"])  # written in the middle of a save
def test_killed_while_saving(data, whole, tmp_path, sign):
    out = tmp_path/"run"
    process = start(data, out)
    wait_for(out/sign, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode==-signal.SIGKILL, "the run ended before it could be killed"
    finish(start(data, out, "--resume"))
    for name in ("model.safetensors", "archive.json", "completions.jsonl"):
        assert (out/name).read_bytes()==(whole/name).read_bytes(), name
    assert len((out/"metrics.jsonl").read_text().splitlines())==4
