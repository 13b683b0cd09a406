"""What `ivgr merge` writes, in the hands of others: `transformers serve`, with a processor that can do without torchvision, and the plain
AutoProcessor where torchvision is installed."""
import base64,importlib.util,json,urllib.request

import pytest,torch
from test_serve import READER,serving
from transformers import AutoModelForImageTextToText,AutoProcessor
from transformers.utils.import_utils import is_serve_available

from ivgr.data.images import load_image
from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.policy import encode,load_policy,save_policy
from ivgr.prompts import final_answer
from ivgr.qlora import LoraSettings,add_lora
from ivgr.sampler import sample_rollouts
from ivgr.serve.merge import merge

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A run with an adapter that has learned, and what `merge` makes of it"
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("merge")
    policy = add_lora(load_policy(device="cpu"), LoraSettings(rank=4))
    torch.manual_seed(1)
    for name,weight in policy.model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(weight, std=.02)
    save_policy(policy, path/"run")
    (path/"run/run.json").write_text(json.dumps(dict(policy="tiny", quantise=None)))
    merge(path/"run", path/"merged", "float32")
    write_needle(path, "test", 3, progress=False)
    return path

@pytest.fixture(scope="module")
def replies(folder):
    "Each sample and stream with the greedy reply of the policy that was trained"
    policy = load_policy(folder/"run", device="cpu")
    samples = list(Samples(folder, "test"))
    groups = sample_rollouts(policy, [encode(policy, s) for s in samples], 1, 80, temperature=0)
    return [(sample, rollout) for sample,group in zip(samples, groups) for rollout in group]

def text_of(folder, sample, stream):
    "The prompt's text, from the file beside the weights"
    return f"{sample.question}\n{json.loads((folder/'merged/prompts.json').read_text())[str(stream)]}"

@pytest.mark.skipif(not HAS_TORCHVISION, reason="transformers' processor of Qwen3-VL needs torchvision")
def test_plain_transformers_gives_the_same_replies(folder, replies):
    "Model and processor as every tutorial loads them"
    model = AutoModelForImageTextToText.from_pretrained(folder/"merged")
    processor = AutoProcessor.from_pretrained(folder/"merged")
    for sample,rollout in replies:
        chat = [dict(role="user", content=[dict(type="image", image=load_image(sample.images[0])),
                                           dict(type="text", text=text_of(folder, sample, rollout.stream))])]
        inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=80, do_sample=False)
        assert processor.decode(out[0, inputs["input_ids"].shape[1]:]).removesuffix("<|im_end|>")==rollout.text

@pytest.mark.skipif(not is_serve_available(), reason="the server's packages are not installed: pip install 'transformers[serving]'")
def test_transformers_serve_gives_the_same_replies(folder, replies, monkeypatch):
    "As the page on serving has it: a chat request with the image as a data URL; the reasoning comes in a field of its own"
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(folder, model="merged", start=READER) as (url, log):
        for sample,rollout in replies:
            image = "data:image/png;base64,"+base64.b64encode(open(sample.images[0], "rb").read()).decode()
            content = [dict(type="image_url", image_url=dict(url=image)), dict(type="text", text=text_of(folder, sample, rollout.stream))]
            body = dict(model="merged", messages=[dict(role="user", content=content)], max_tokens=80, temperature=0)
            request = urllib.request.Request(url+"/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as answer: message = json.load(answer)["choices"][0]["message"]
            whole = f"<think>{message['reasoning_content']}</think>{message['content']}"
            assert whole==rollout.text and final_answer(message["content"])==final_answer(rollout.text)
