"""`EndpointJudge` and `RolloutServer` against `transformers serve`: a real server and a real, if meaningless, model, made here.

The judge's model is a Qwen2 of random weights whose last layer is solved by least squares, so that it gives the replies of `CHAINS` and no
others: a score is right only if the rubric and the pair have reached the model token by token, and the reply has come back to its pair."""
import json,os,socket,subprocess,sys,time,urllib.request,warnings
from contextlib import contextmanager

import pytest,torch
from tokenizers import Tokenizer,decoders,models,pre_tokenizers,trainers
from transformers import PreTrainedTokenizerFast,Qwen2Config,Qwen2ForCausalLM
from transformers.utils.import_utils import is_serve_available

from ivgr.core import InputError
from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.judge import RUBRIC, judge_messages
from ivgr.serve.endpoint import EndpointConfig, EndpointJudge
from ivgr.judge import Pair
from ivgr.policy import load_policy, save_policy
from ivgr.qlora import LoraSettings, add_lora
from ivgr.sampler import sample_rollouts
from ivgr.serve.rollouts import RolloutConfig, RolloutServer, chat, rollout_request
from ivgr.policy import encode

pytestmark = pytest.mark.skipif(not is_serve_available(),
                                reason="the server's packages are not installed: pip install 'transformers[serving]'")

KEY = "sk-never-to-be-seen"
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>
{% endif %}{% endif %}"""

def pair(colour): return Pair("Which colour is the tile?", "The tile is red.", f"The tile is {colour}.")

SCORE = dict(A=1., B=.7, C=.3, D=0.)
LABEL = dict(red="A", pink="B", brown="C", blue="D", crimson="A", cyan="D", white="D", orange="C", rose="B", black="D")
PAIRS,SCORES = [pair(c) for c in LABEL],[SCORE[l] for l in LABEL.values()]
TORN,WORDY = pair("red or blue"),pair("hard to say")    # two labels at 62% and 38%; a sentence, unless told not to think
CHAINS = [*((p, {}, {l: 15.}) for p,l in zip(PAIRS, LABEL.values())), (TORN, {}, dict(A=15., D=14.5)),
          (WORDY, {}, {"A candidate": 15.}), (WORDY, dict(enable_thinking=False), dict(B=15.))]

def make_model(path):
    "Save a model that replies to each pair of `CHAINS` as listed: texts and the logits of their first tokens (0 for all else)"
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer,tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False),decoders.ByteLevel()
    tok.train_from_iterator([RUBRIC], trainers.BpeTrainer(vocab_size=600, special_tokens=["<|im_start|>", "<|im_end|>"],
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tok.chat_template = TEMPLATE
    end = tok.eos_token_id
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tok), hidden_size=96, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        initializer_range=.07, tie_word_embeddings=False, bos_token_id=None, eos_token_id=end, pad_token_id=end)).eval()
    states,logits = [],[]
    for p,kwargs,replies in CHAINS:
        prompt = tok.apply_chat_template(judge_messages(p), add_generation_prompt=True, return_dict=False, **kwargs)
        wanted = {}                                     # what was written so far -> logits of the next token
        for reply,logit in replies.items():
            ids = [*tok(reply).input_ids, end]
            wanted.setdefault((), {})[ids[0]] = logit
            wanted |= {tuple(ids[:i]): {ids[i]: 15.} for i in range(1, len(ids))}
        for written,row in wanted.items():
            with torch.no_grad(): states.append(model.model(torch.tensor([[*prompt, *written]])).last_hidden_state[0,-1].double())
            logits.append(torch.zeros(len(tok), dtype=torch.double))
            for t,v in row.items(): logits[-1][t] = v
    states,logits = torch.stack(states),torch.stack(logits)
    model.lm_head.weight.data = (torch.linalg.pinv(states)@logits).T.float().contiguous()
    torch.testing.assert_close(model.lm_head(states.float()).double(), logits, atol=.02, rtol=0)
    model.save_pretrained(path)
    tok.save_pretrained(path)

START = """
import os,sys,threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # ends when this test does, however it does
from transformers.cli.transformers import main
main()
"""

@contextmanager
def serving(folder, *flags, model="judge", start=START):
    "The API's address and the log of a server for the model in a directory of `folder`"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-c", start, "serve", model, "--host=127.0.0.1", f"--port={port}", "--device=cpu", *flags]
    log = folder/f"{port}.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT,
                                  env=os.environ|dict(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_UPDATE_CHECK="1"))
    try:
        until = time.monotonic()+120
        while True:
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close(); break
            except OSError: pass
            if server.poll() is not None or time.monotonic()>until: pytest.fail(f"the server did not start:\n{log.read_text()}")
            time.sleep(.1)
        yield f"http://127.0.0.1:{port}/v1",log
    finally:
        server.kill()
        server.stdin.close()
        server.wait(10)

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("serve")
    make_model(path/"judge")
    return path

@pytest.fixture(scope="module")
def server(folder):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("NO_PROXY", "*")
        with serving(folder) as s: yield s

@pytest.fixture(autouse=True)
def _direct(monkeypatch): monkeypatch.setenv("NO_PROXY", "*")

def judge_at(url, **kw):
    one = dict(model="judge", key=KEY, scoring="sample", n=1, temperature=0., timeout=60., retries=1, backoff=.05)
    return EndpointJudge(EndpointConfig(url=url, **one|kw))

def ask(judge, pairs):
    "Scores, report and warnings of one call"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scores = judge(pairs)
    return scores,judge.report(),[str(w.message) for w in caught if "NO SCORE" in str(w.message)]

SAMPLING = dict(generation_config='{"do_sample": true}')

@pytest.mark.parametrize("concurrency", [1, 64])
def test_every_reply_becomes_the_score_of_its_pair(server, concurrency):
    scores,r,loud = ask(judge_at(server[0], concurrency=concurrency), PAIRS+[WORDY]+PAIRS[::-1])
    assert scores==SCORES+[None]+SCORES[::-1]           # a sentence is missing, not 0
    assert (r["calls"], r["missing"], r["failed/unreadable"])==(len(PAIRS)+1, 1, 1) and not loud

def test_probabilities_are_not_given_and_the_judge_says_so(server):
    body = dict(model="judge", messages=judge_messages(PAIRS[0]), temperature=0, max_tokens=4, n=2, logprobs=True, top_logprobs=20)
    request = urllib.request.Request(server[0]+"/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as f: choice, = json.load(f)["choices"]  # one, though two were asked for
    assert (choice["message"]["content"], choice["finish_reason"])==("A", "stop")
    assert "logprobs" not in choice, "this version gives probabilities: test them, and say so in serve/endpoint.ipynb"
    scores,r,loud = ask(judge_at(server[0], scoring="expect", concurrency=1), PAIRS+[WORDY])
    assert scores==[None]*len(scores) and r["missing"]==r["calls"]==r["failed/unreadable"]==len(scores) and r["retries"]==0
    assert len(loud)==1 and "no logprobs: use scoring='sample'" in loud[0]

def test_n_replies_are_n_requests(server):
    scores,r,_ = ask(judge_at(server[0], n=4, temperature=.5), PAIRS)
    assert scores==pytest.approx(SCORES, abs=1e-12) and r["calls"]==4*len(PAIRS)

def test_the_server_samples_only_where_its_generation_config_says_so(server):
    n = 24                                              # all of them A: one in 100000
    score = lambda temperature,**extra: ask(judge_at(server[0], n=n, temperature=temperature, extra=extra, concurrency=1), [TORN])[0][0]
    assert score(1.)==1.                                # the likelier label each time: the temperature is not looked at
    assert 0<score(1., **SAMPLING)<1
    assert score(.02, **SAMPLING)==1.                   # and here it is
    assert score(1., **SAMPLING, seed=0) in (0., 1.)    # each request starts from the same seed, so all replies are one

@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_a_reply_that_fills_its_room_is_not_read(server, max_tokens):
    scores,r,loud = ask(judge_at(server[0], max_tokens=max_tokens), PAIRS[:1])
    read = max_tokens==3                                # the letter, its end, and one more: at 2 this server says "length", too
    assert scores==([1.] if read else [None]) and r["missing"]==r.get("failed/unreadable", 0)==len(loud)==(not read)

@pytest.mark.parametrize("kw,status", [(dict(model="another"), 400), (dict(extra=dict(guided_choice=list("ABCD"))), 422)])
def test_what_the_server_refuses_is_not_asked_again(server, kw, status):
    scores,r,loud = ask(judge_at(server[0], **kw), PAIRS)
    assert scores==[None]*len(PAIRS) and r["calls"]==r["failed/rejected"]==len(PAIRS) and r["retries"]==0
    assert len(loud)==1 and f"HTTP {status}" in loud[0]

def test_thinking_can_be_turned_off(server):
    assert ask(judge_at(server[0]), [WORDY])[0]==[None]
    assert ask(judge_at(server[0], extra=dict(chat_template_kwargs=dict(enable_thinking=False))), [WORDY])[0]==[.7]

def test_batched_cached_and_gone(folder, tmp_path):
    "With continuous batching (a small cache: its own size is made for a GPU); a second judge; then no server"
    flags = ["--continuous-batching", "--cb-block-size=32", "--cb-num-blocks=128", "--cb-max-batch-tokens=512"]
    with serving(folder, *flags) as (url, log):
        scores,r,_ = ask(judge_at(url, cache=tmp_path), PAIRS+[WORDY])
        assert scores==SCORES+[None] and r["calls"]==len(PAIRS)+1
        scores,r,_ = ask(judge_at(url, cache=tmp_path), PAIRS)
        assert scores==SCORES and (r["cached"], r["calls"])==(len(PAIRS), 0)
        assert ask(judge_at(url, n=24, temperature=1., extra=SAMPLING), [TORN])[0]==[1.]  # the first request decided for all
        assert "CB: True" in log.read_text() and KEY not in log.read_text()
    scores,r,loud = ask(judge_at(url, cache=tmp_path), PAIRS+[TORN])
    assert scores==SCORES+[None] and r["failed/connection"]==r["calls"]==2 and len(loud)==1

# The shipped policy has an image processor and a tokenizer, but no processor of both, which would want torchvision for videos.
READER = """
from transformers import AutoProcessor,AutoTokenizer,ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
class Reader(ProcessorMixin):
    return_mm_token_type_ids,replace_image_token = True,Qwen3VLProcessor.replace_image_token
    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token,self.image_token_id = "<|image_pad|>",tokenizer.convert_tokens_to_ids("<|image_pad|>")
        super().__init__(image_processor, tokenizer, chat_template=tokenizer.chat_template)
AutoProcessor.from_pretrained = lambda name, **kw: Reader(AutoImageProcessor.from_pretrained(name), AutoTokenizer.from_pretrained(name))
"""+START

def test_rollouts_as_far_as_this_server_goes(tmp_path, monkeypatch):
    "Images and prompts arrive: as many tokens as ours, and the same greedy reply. The rest it can't do, and we say so"
    policy = load_policy(device="cpu")
    save_policy(policy, tmp_path/"tiny")
    write_needle(tmp_path, "train", 3, progress=False)
    queries = [encode(policy, s) for s in Samples(tmp_path)]
    greedy = sample_rollouts(policy, queries, 1, 80, temperature=0)
    with serving(tmp_path, model="tiny", start=READER) as (url, log):
        for q,(*rollouts,) in zip(queries, greedy):
            for r in rollouts:
                body = dict(model="tiny", messages=chat(policy, q, r.stream), max_tokens=80, temperature=0)
                request = urllib.request.Request(url+"/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=60) as f: answer = json.load(f)
                assert answer["usage"]["prompt_tokens"]==len(q.prefix)+len(q.suffixes[r.stream])
                m = answer["choices"][0]["message"]             # the reasoning is taken out of the text
                assert f"<think>{m['reasoning_content']}</think>{m['content']}"==r.text
        sampler = RolloutServer(RolloutConfig(url=url, key=KEY, retries=1, backoff=.05), tmp_path/"adapters")
        lora = add_lora(policy, LoraSettings(rank=4))
        with pytest.raises(InputError, match="load_lora_adapter.*HTTP 404.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"): sampler(lora, queries, 2, 40)
        async def loaded(name, client): pass                # as if it took adapters
        monkeypatch.setattr(sampler, "_load", loaded)
        with pytest.raises(InputError, match="HTTP 422.*return_token_ids"): sampler(lora, queries, 2, 40)
        plain = ("model", "messages", "max_tokens", "temperature", "seed", "logprobs", "n")
        monkeypatch.setattr("ivgr.serve.rollouts.rollout_request", lambda *a: {k:v for k,v in (rollout_request(*a)|dict(model="tiny")).items() if k in plain})
        with pytest.raises(InputError, match="has no token ids"): sampler(lora, queries, 2, 40)
        assert KEY not in log.read_text()
