"Rollouts from a server: what comes back is right, or the step ends with an error that says what to do"
import copy,json,math,threading,time
from dataclasses import asdict,fields,replace

import pytest,torch

from ivgr.core import InputError, Rollout, Stream, rng_for
from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.serve.endpoint import EndpointConfig
from ivgr.policy import load_policy
from ivgr.qlora import LoraSettings, add_lora
from ivgr.sampler import sample_rollouts
from ivgr.serve.rollouts import RolloutConfig, RolloutServer, correct
from ivgr.train.rl import train
from ivgr.trainer import DualStreamConfig, DualStreamTrainer
from ivgr.policy import encode
from ivgr.tree import Query, token_logps

from rollout_server import BROKEN,LASTING,RolloutFake

KEY = "sk-never-to-be-seen"
torch.set_num_threads(1)

@pytest.fixture(autouse=True)
def _direct(monkeypatch): monkeypatch.setenv("NO_PROXY", "*")

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_needle(path, "train", 8, progress=False)
    return path

def adapted(std=.05):
    "The shipped policy with an adapter that does something"
    policy = add_lora(load_policy(device="cpu"), LoraSettings(rank=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for name,p in policy.model.named_parameters():
            if "lora_B" in name: p.normal_(std=std)
    return policy

@pytest.fixture(scope="module")
def policy(): return adapted()

@pytest.fixture(scope="module")
def host(): return add_lora(load_policy(device="cpu"), LoraSettings(rank=4)) # what the server has of its own

@pytest.fixture(scope="module")
def queries(data, policy): return [encode(policy, s) for s in Samples(data)[:2]]

def sampler_at(url, folder, **kw): return RolloutServer(RolloutConfig(url=url, **dict(key=KEY, timeout=60., retries=2, backoff=.02)|kw), folder/"adapters")
def ask(sampler, policy, queries, n=2): return sampler(policy, queries, n, 30, generator=torch.Generator().manual_seed(5))
def flat(rollouts): return [r for rs in rollouts for r in rs]

@pytest.fixture(scope="module")
def right(policy, queries, host, tmp_path_factory):
    "What a server without faults answers"
    with RolloutFake(host) as server: return ask(sampler_at(server.url, tmp_path_factory.mktemp("right")), policy, queries[:1])

def test_the_server_samples_our_policy(policy, queries, host, tmp_path):
    with RolloutFake(host) as server:
        sampler = sampler_at(server.url, tmp_path)
        rollouts = ask(sampler, policy, queries)
        requests = [r for r in server.seen if "messages" in r]
    assert [[r.stream for r in rs] for rs in rollouts]==[[s for s in q.suffixes for _ in range(2)] for q in queries]
    stats = sampler.report()
    assert stats["mismatch_max"]<1e-4 and stats["capped"]==0 and stats["retries"]==0 and stats["calls"]==1+len(requests)
    for r in flat(rollouts):
        assert r.weights==pytest.approx([1.]*len(r.tokens), abs=1e-3)
        assert r.truncated==(r.tokens[-1]!=policy.tokenizer.eos_token_id) and r.text==policy.to_text(r.tokens)
    assert len({r["seed"] for r in requests})==len(requests)
    for r in requests:                                          # nothing is left to the defaults of the server's model
        assert (r["top_k"], r["min_p"], r["repetition_penalty"], r["presence_penalty"], r["frequency_penalty"])==(-1, 0, 1, 0, 0)
        assert {int(t):b for t,b in r["logit_bias"].items()}==dict.fromkeys(policy.suppress_tokens, -100)
    with policy.model.disable_adapter(): assert correct(policy, queries, copy.deepcopy(rollouts))["mismatch"]>.01

def test_the_server_reads_what_we_read(policy, queries, host):
    from ivgr.serve.rollouts import chat
    for q in queries:
        for stream,branch in q.suffixes.items():
            theirs = RolloutFake(host).query(json.loads(json.dumps(chat(policy, q, stream))))
            assert theirs.prefix+list(theirs.suffixes.values())[0]==q.prefix+branch
            assert torch.equal(theirs.pixels, q.pixels) and torch.equal(theirs.grid, q.grid)

def test_adapters_come_and_go(policy, queries, host, tmp_path):
    with RolloutFake(host) as server:
        sampler = sampler_at(server.url, tmp_path)
        for _ in range(3):
            ask(sampler, policy, queries[:1])
            name, = server.adapters
            assert [p.name for p in (tmp_path/"adapters").iterdir()]==[name]
        steps = [s for s in server.log if s[0]!="chat/completions"]
        sampler.close()
        assert not server.adapters and not list((tmp_path/"adapters").iterdir())
    names = [name for step,name in steps if step=="load_lora_adapter"]
    assert len(set(names))==3                                   # the server's prefix cache goes by the name
    assert steps==[("load_lora_adapter", names[0]), ("unload_lora_adapter", names[0]), ("load_lora_adapter", names[1]),
                   ("unload_lora_adapter", names[1]), ("load_lora_adapter", names[2])]

def test_an_adapter_that_the_server_has_forgotten(policy, queries, host, tmp_path):
    with RolloutFake(host) as server:
        sampler = sampler_at(server.url, tmp_path)
        ask(sampler, policy, queries[:1])
        server.adapters.clear()                                 # it was started anew
        assert len(ask(sampler, policy, queries[:1])[0])==4

def test_a_load_whose_answer_is_lost(policy, queries, host, tmp_path):
    "The server has loaded it, and says so when asked again"
    with RolloutFake(host, lambda i: "hang" if i==0 else None) as server:
        sampler = sampler_at(server.url, tmp_path, timeout=5.)
        assert len(ask(sampler, policy, queries[:1])[0])==4
        assert len(server.adapters)==1 and sampler.report()["failed/timeout"]>=1

CONNECTION = ["500", "503-later", "429", "hang", "drip", "cut", "cut-body", "invalid", "shape"]

@pytest.mark.parametrize("fault", CONNECTION+[b for b in BROKEN if b not in LASTING])
def test_a_passing_fault_changes_nothing(fault, policy, queries, host, right, tmp_path):
    with RolloutFake(host, lambda i: fault if i in (1, 2) else None) as server:
        sampler = sampler_at(server.url, tmp_path, retries=4, timeout=6. if fault in ("hang", "drip") else 60.)
        rollouts = ask(sampler, policy, queries[:1])
        assert sampler.report()["retries"]>=2
    assert [(r.stream, r.tokens, r.text, r.truncated) for r in flat(rollouts)]==[(r.stream, r.tokens, r.text, r.truncated) for r in flat(right)]

MESSAGES = {"one-reply":"1 replies came, 2 were asked for", "no-ids":"0.10.2", "no-logprobs":"no log-probabilities", "other-prompt":"another prompt",
        "flood":"the answer is longer than 4.06 MB", "elsewhere":"redirects to another one, localhost:9",
        "page":"a web page, not an API"}

@pytest.mark.parametrize("fault", ["500", "429", "cut", "invalid", "aborted", "image-token", *MESSAGES])
def test_a_lasting_fault_ends_the_step(fault, policy, queries, host, tmp_path):
    with RolloutFake(host, lambda i: fault if i else None) as server:
        sampler = sampler_at(server.url, tmp_path)
        kind,words = (InputError, MESSAGES[fault]) if fault in MESSAGES else (ConnectionError, "failed 3 times: /chat/completions")
        start = time.monotonic()
        with pytest.raises(kind) as e: ask(sampler, policy, queries[:1])
        assert time.monotonic()-start<60
    assert words in str(e.value) and server.url in str(e.value) and KEY not in str(e.value)
    assert not [t for t in threading.enumerate() if t.name=="requests"]

def test_setups_that_are_wrong(policy, queries, host, tmp_path):
    def fails(kind, words, server, **kw):
        with pytest.raises(kind, match=words) as e: ask(sampler_at(server.url, tmp_path, retries=0, **kw), policy, queries[:1])
        assert KEY not in str(e.value)
    with RolloutFake(host, runtime=False) as server: fails(InputError, r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", server)
    with RolloutFake(host, lambda i: "no-file") as server: fails(InputError, "No adapter found for .*adapter_dir that it can read", server)
    with RolloutFake(host, lambda i: "401") as server: fails(InputError, "another key.*IVGR_ROLLOUT_KEY", server)
    with RolloutFake(host, lambda i: "500") as server: fails(ConnectionError, "told to fail.*--max-lora-rank", server)
    fails(ConnectionError, "failed 1 times: /load_lora_adapter", server)   # nobody is there any more
    with RolloutFake(host) as server:
        answer = server.answer
        def forgetful(request, path, fault):
            out = answer(request, path, fault)
            if "lora_path" in request: server.adapters.clear()
            return out
        server.answer = forgetful
        fails(InputError, "The model `ivgr-.*` does not exist", server)

def test_a_key_that_the_server_repeats_is_not_shown(policy, queries, host, tmp_path):
    with RolloutFake(host) as server:
        server.answer = lambda *a: ("400 Bad Request", json.dumps(dict(error=f"bad key {KEY}")))
        with pytest.raises(InputError, match=r"bad key \*\*\*") as e: ask(sampler_at(server.url, tmp_path), policy, queries[:1])
        assert server.headers[0]["authorization"]==f"Bearer {KEY}" and KEY not in str(e.value)

def test_a_policy_without_an_adapter(queries, tmp_path):
    with pytest.raises(InputError, match="set lora_rank, or leave rollout_url out"): ask(sampler_at("http://127.0.0.1:9/v1", tmp_path), load_policy(device="cpu"), queries)

def test_every_setting_can_come_from_the_environment(monkeypatch):
    values = dict(url="http://127.0.0.1:1/v1", key=KEY, adapter_dir="/shared", cap=3., concurrency=2, timeout=2.5, retries=0, backoff=.25)
    assert set(values)=={f.name for f in fields(RolloutConfig)}
    monkeypatch.setenv("IVGR_JUDGE_KEY", "sk-another")
    assert RolloutConfig(url=values["url"]).key==""            # never the judge's
    for k,v in values.items(): monkeypatch.setenv("IVGR_ROLLOUT_"+k.upper(), str(v))
    assert asdict(RolloutConfig())==values
    assert EndpointConfig(url=values["url"], model="m").key=="sk-another"

def test_weights_undo_a_mismatched_server(policy, queries, host, tmp_path):
    "Where the replies' second word is chosen, the server's choice is too varied; weighted, it is as likely as the policy's own"
    stream,n = next(iter(queries[0].suffixes)),600
    one = [replace(queries[0], suffixes={stream:queries[0].suffixes[stream]})]
    with RolloutFake(host, heat=2.) as server:
        sampler = sampler_at(server.url, tmp_path, cap=50.)
        rollouts, = sampler(policy, one, n, 2, generator=torch.Generator().manual_seed(0))
        assert sampler.report()["mismatch"]>.05
    pairs = {tuple(r.tokens) for r in rollouts if len(r.tokens)==2}
    own,_ = token_logps(policy.model, one, [[Rollout(stream, list(p), [], "") for p in pairs]], suppress_tokens=policy.suppress_tokens)
    truth = {p:l.sum().exp().item() for p,l in zip(pairs, own.detach())}
    def often(weights):
        out = dict.fromkeys(pairs, 0.)
        for r,w in zip(rollouts, weights):
            if len(r.tokens)==2: out[tuple(r.tokens)] += w/n
        return sum(abs(out[p]-truth[p]) for p in pairs)
    assert often(math.prod(r.weights) for r in rollouts)<often([1.]*n)/2

SMALL = dict(max_steps=4, save_steps=2, per_device_train_batch_size=2, n_rollouts=2, max_new_tokens=24, use_cpu=True, lora_rank=4,
             optim="sgd", learning_rate=2., warmup_steps=0)     # Adam makes steps of one size from gradients of any, rounding errors included

def trainer_for(data, out, sampler, **kw):
    args = DualStreamConfig(output_dir=str(out), data=str(data), disable_tqdm=True, **SMALL|kw)
    return DualStreamTrainer(add_lora(load_policy(device="cpu"), args.lora, args.seed), args, Samples(data), sampler=sampler)

def one_by_one(policy, queries, n, max_new_tokens, temperature, top_p, generator, shared):
    "Here, but in the server's order and with its seeds"
    def some(i, q, stream):
        g = torch.Generator().manual_seed(rng_for(generator.initial_seed(), i, stream).getrandbits(31))
        return sample_rollouts(policy, [Query(q.prefix, {stream:q.suffixes[stream]}, q.pixels, q.grid, q.positions)], n, max_new_tokens, temperature, top_p, g)[0]
    return [[r for stream in q.suffixes for r in some(i, q, stream)] for i,q in enumerate(queries)]

@pytest.mark.parametrize("kw", [{}, dict(updates_per_rollout=2, beta=.05)], ids=["one update", "two updates and KL"])
def test_training_through_the_server_is_training(data, host, tmp_path, kw):
    with RolloutFake(host) as server:
        there = trainer_for(data, tmp_path/"there", sampler_at(server.url, tmp_path), **kw)
        start = {k:v.clone() for k,v in there.policy.model.state_dict().items()}
        there.train()
    here = trainer_for(data, tmp_path/"here", one_by_one, **kw)
    here.train()
    def replies(out):
        lines = (tmp_path/out/"completions.jsonl").read_text().splitlines()
        return [json.loads(line)["text"] for line in lines]
    assert replies("there")==replies("here")
    ours,theirs = here.policy.model.state_dict(),there.policy.model.state_dict()
    moved = torch.cat([(ours[k]-v).flatten() for k,v in start.items()])
    apart = torch.cat([(ours[k]-theirs[k]).flatten() for k in start])
    assert moved.norm()>.01 and apart.norm()<1e-3*moved.norm(), (moved.norm(), apart.norm())
    logged = [h for h in there.state.log_history if "rollout/mismatch" in h]
    assert logged and all(h["rollout/mismatch_max"]<1e-3 and h["rollout/calls"]>4 for h in logged)

def test_a_mismatched_server_is_weighed_in_the_step(data, host, tmp_path):
    "The gradient of a step is that of the loss with the weights, and without them it is another"
    with RolloutFake(host, heat=2.) as server:
        trainer = trainer_for(data, tmp_path/"run", sampler_at(server.url, tmp_path, cap=1.5))
        trainer.create_optimizer_and_scheduler(4)
        groups = trainer.roll_out(Samples(data)[:2], 0)
    rollouts = [g.rollouts for g in groups]
    n = sum(len(r.tokens) for r in flat(rollouts))
    learns = [p for p in trainer.policy.model.parameters() if p.requires_grad]
    def gradient():
        loss = trainer.update_loss(groups, dict.fromkeys(Stream, n))
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, learns)])
    got = gradient()
    logps,mask = token_logps(trainer.policy.model, [g.query for g in groups], rollouts, suppress_tokens=trainer.policy.suppress_tokens)
    by_hand = 0.
    for r,row,real in zip(flat(rollouts), logps, mask):
        assert max(r.weights)<=1.5+1e-6
        by_hand = by_hand-sum(r.advantage*w*(l-l.detach()).exp() for l,w in zip(row[real], r.weights))/n
    want = torch.cat([g.flatten() for g in torch.autograd.grad(by_hand, learns)])
    torch.testing.assert_close(got, want, atol=1e-5*want.abs().max().item(), rtol=1e-3)
    assert any(w==pytest.approx(1.5) for r in flat(rollouts) for w in r.weights)
    for r in flat(rollouts): r.weights = None
    assert (gradient()-want).norm()>.02*want.norm()

def test_lost_in_the_middle_and_resumed(data, host, tmp_path):
    "What was done is saved, and when the server is back the run ends as if it had never been gone"
    args = lambda out: DualStreamConfig(output_dir=str(tmp_path/out), data=str(data), **SMALL|dict(save_steps=4))
    config = lambda server: RolloutConfig(url=server.url, key=KEY, retries=1, backoff=.02)
    with RolloutFake(host) as server:
        train(args("whole"), progress=False, rollouts=config(server))
        assert not server.adapters                              # the last one is taken off at the end
    with RolloutFake(host, lambda i: "cut" if i>12 else None) as server:  # 5 requests a step, and one more from the second
        with pytest.raises(ConnectionError, match="failed 2 times"): train(args("run"), progress=False, rollouts=config(server))
    assert (tmp_path/"run"/"checkpoint-2").exists()
    with RolloutFake(host) as server: train(args("run"), True, progress=False, rollouts=config(server))
    files = ["adapter_model.safetensors", "archive.jsonl", "completions.jsonl"]
    for name in files: assert (tmp_path/"run"/name).read_bytes()==(tmp_path/"whole"/name).read_bytes(), name
    assert not any(KEY.encode() in p.read_bytes() for p in (tmp_path/"run").rglob("*") if p.is_file())
    assert len((tmp_path/"run"/"metrics.jsonl").read_text().splitlines())==4
