"Real policies: random weights of every family, quantised for real, adapted, saved, merged; and what is refused"
import json,os,re,subprocess,sys,threading,warnings
from base64 import b64decode
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from pathlib import Path

import pytest,torch
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors.torch import load_file,save_file
from torch import distributed,nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import AutoConfig,AutoModelForImageTextToText,Qwen2VLImageProcessorPil

import ivgr
from ivgr import sampler
from ivgr.train import distributed as distributed_module
from ivgr.core import Frame, InputError, Reward
from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.policy import is_quantised, load_policy, save_policy
from ivgr.train.tiny import TINY_PROMPTS, tiny_tokenizer
from ivgr.qlora import LoraSettings, add_lora, lora_targets, merge_adapter
from ivgr.train.distributed import pad_microbatches, shard_base
from ivgr.train.hub import push_policy
from ivgr.sampler import sample_rollouts
from ivgr.policy import Policy, encode
from ivgr.tree import packs, token_logps

torch.set_num_threads(1)
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "qwen3_5"]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:.*layers of linear attention:UserWarning")

def random_policy(family, **text):
    "A policy of a family with random weights, and the tiny tokenizer"
    tok = tiny_tokenizer()
    special = {f"{k}_token_id":tok.convert_tokens_to_ids(f"<|{t}|>") for k,t in
               dict(image="image_pad", video="video_pad", vision_start="vision_start", vision_end="vision_end").items()}
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 2, 2], mrope_interleaved=True)
    text = dict(vocab_size=len(tok), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                head_dim=16, max_position_embeddings=2048, initializer_range=.1, rope_parameters=rope, pad_token_id=tok.pad_token_id)|text
    vision = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=4, patch_size=8, out_hidden_size=64, initializer_range=.1)
    if family=="qwen2_5_vl": vision |= dict(fullatt_block_indexes=[1], window_size=32)
    else: vision |= dict(num_position_embeddings=144)
    if family=="qwen3_vl": vision |= dict(deepstack_visual_indexes=[0])
    if family=="qwen3_5":
        text |= dict(layer_types=["linear_attention", "full_attention"], linear_key_head_dim=16, linear_value_head_dim=16,
                     linear_num_key_heads=2, linear_num_value_heads=4, rope_parameters=rope|dict(partial_rotary_factor=1.))
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, text_config=text, vision_config=vision, **special)).eval()
    model.generation_config.eos_token_id,model.generation_config.pad_token_id = tok.eos_token_id,tok.pad_token_id
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size=dict(shortest_edge=32*32, longest_edge=512*512))
    return Policy(model, images, tok, TINY_PROMPTS)

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_needle(folder, "train", 6, progress=False)
    return folder

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A directory for each family"
    folder = tmp_path_factory.mktemp("policies")
    for f in FAMILIES: save_policy(random_policy(f), folder/f)
    return folder

def rolled(policy, data, n=2):
    "Encoded queries, and rollouts of them"
    queries = [encode(policy, s) for s in Samples(data)[:3]]
    return queries,sample_rollouts(policy, queries, n, 8, generator=torch.Generator().manual_seed(0))

def logps(policy, queries, rollouts):
    with torch.no_grad(): values,mask = token_logps(policy.model, queries, rollouts, suppress_tokens=policy.suppress_tokens)
    return values[mask]

def shake(policy, std=.1):
    "As if it had learned something"
    torch.manual_seed(1)
    for p in policy.model.parameters():
        if p.requires_grad: p.data += std*torch.randn_like(p)
    return policy

@pytest.mark.parametrize("bits,kind", [(4, "Linear4bit"), (8, "Linear8bitLt")])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_language_model_is_quantised(family, bits, kind, saved, data):
    policy,exact = load_policy(saved/family, device="cpu", quantise=bits),load_policy(saved/family, device="cpu")
    decoder = {id(m) for m in policy.model.get_decoder().modules()}
    for name,m in policy.model.named_modules():
        if isinstance(m, nn.Linear): assert type(m).__name__.removeprefix("OneDNN")==(kind if id(m) in decoder else "Linear"), name
    assert is_quantised(policy.model) and not is_quantised(exact.model)
    queries,rollouts = rolled(exact, data)
    off = (logps(policy, queries, rollouts)-logps(exact, queries, rollouts)).abs().mean()
    assert 0<off<(.6 if bits==4 else .2), off

def test_the_packed_bits_are_stored_as_the_dtype(saved):
    policy = load_policy(saved/"qwen2_5_vl", dtype=torch.bfloat16, device="cpu", quantise=4)
    assert {p.dtype for p in policy.model.parameters()}=={torch.bfloat16}  # one dtype, as FSDP wants it
    p = policy.model.get_decoder().layers[0].mlp.up_proj.weight
    assert (p.quant_type, p.quant_state.nested, p.numel())==("nf4", True, 64*128//4)
    lora = add_lora(policy)
    assert {p.dtype for p in lora.model.parameters() if p.requires_grad}=={torch.float32}

@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES[:2])
def test_sampling_takes_no_gradient_away(family, bits, saved, data):
    lora = shake(add_lora(load_policy(saved/family, device="cpu", quantise=bits)))
    queries,rollouts = rolled(load_policy(saved/family, device="cpu"), data)
    def gradients():
        values,mask = token_logps(lora.model, queries, rollouts, suppress_tokens=lora.suppress_tokens)
        return torch.autograd.grad(values[mask].sum(), [p for p in lora.model.parameters() if p.requires_grad])
    before = gradients()
    rolled(lora, data)
    assert all(g.any() and torch.equal(g, g_) for g,g_ in zip(before, gradients(), strict=True))

@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_off_is_the_base_and_the_disk_changes_nothing(family, bits, saved, data, tmp_path):
    policy = load_policy(saved/family, device="cpu", quantise=bits)
    queries,rollouts = rolled(policy, data)
    base = logps(policy, queries, rollouts)
    lora = add_lora(policy, LoraSettings(rank=4, vision=True, merger=True))
    assert torch.equal(logps(lora, queries, rollouts), base)
    learned = logps(shake(lora), queries, rollouts)
    assert (learned-base).abs().mean()>.05
    with lora.model.disable_adapter(): assert torch.equal(logps(lora, queries, rollouts), base)
    save_policy(lora, tmp_path)
    assert not list(tmp_path.glob("model*")) and (tmp_path/"adapter_model.safetensors").exists()
    again = load_policy(tmp_path, device="cpu", quantise=bits)
    assert isinstance(again.model, PeftModel) and again.prompts==TINY_PROMPTS
    assert torch.equal(logps(again, queries, rollouts), learned)
    assert {n for n,p in again.model.named_parameters() if p.requires_grad}=={n for n,p in lora.model.named_parameters() if p.requires_grad}

@pytest.mark.parametrize("settings", [dict(), dict(vision=True, merger=True), dict(rslora=True), dict(dora=True)], ids=str)
@pytest.mark.parametrize("family", FAMILIES[:2])
def test_merged_is_the_adapter_on_the_unpacked_base(family, settings, saved, data, tmp_path):
    lora = shake(add_lora(load_policy(saved/family, device="cpu", quantise=4), LoraSettings(rank=4, **settings)), .02)
    queries,rollouts = rolled(lora, data)
    learned = logps(lora, queries, rollouts)
    with lora.model.disable_adapter(): base = logps(lora, queries, rollouts)
    save_policy(merge_adapter(lora), tmp_path)
    plain = load_policy(tmp_path, device="cpu")
    assert not is_quantised(plain.model) and "quantization_config" not in json.loads((tmp_path/"config.json").read_text())
    assert {type(m).__name__.removeprefix("OneDNN") for m in plain.model.modules() if isinstance(m, nn.Linear)}=={"Linear"}
    off = (logps(plain, queries, rollouts)-learned).abs().max()
    assert off<1e-3<(learned-base).abs().max(), off

@pytest.fixture
def alone():
    "A group of processes with one in it"
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()

@pytest.mark.parametrize("targets", [(), ("attn.qkv", "1.mlp.down_proj")], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_who_fills_up_takes_the_same_way(family, targets, saved, data, alone, monkeypatch):
    "With a split base a forward of nothing calls the layers that a real one calls, and has them in the backward too, whatever is adapted"
    real = add_lora(load_policy(saved/family, device="cpu", quantise=4), LoraSettings(rank=4, vision=True, targets=targets))
    queries,rollouts = rolled(real, data)
    shard_base(real)
    monkeypatch.setattr(distributed_module, "gather_object", lambda mine: [1])
    def way(parts):
        seen,hooks = [],[]
        for n,m in real.model.named_modules():
            if n.endswith(("layers.0", "layers.1")):
                def note(module, args, out, n=n):
                    seen.append((n, out.requires_grad))
                    if out.requires_grad: out.register_hook(lambda grad: seen.append((n, "backward")))
                hooks.append(m.register_forward_hook(note))
        for i in pad_microbatches(real, parts):
            values,mask = token_logps(real.model, [queries[i]], [rollouts[i]], suppress_tokens=real.suppress_tokens)
            values[mask].sum().backward()
        for h in hooks: h.remove()
        grads = {n:p.grad.clone() for n,p in real.model.named_parameters() if p.grad is not None}
        real.model.zero_grad()
        return seen,grads
    (seen,grads),(idle,nothing) = way([0]),way([])
    assert len(seen)==4 and idle==seen and nothing.keys()==grads.keys()
    assert any(g.any() for g in grads.values()) and not any(g.any() for g in nothing.values())

def test_a_scale_that_does_not_shrink_with_the_rank(saved):
    scale = lambda **kw: next(m.scaling["default"] for m in add_lora(load_policy(saved/"qwen3_vl", device="cpu"), LoraSettings(**kw)).model.modules() if isinstance(getattr(m, "scaling", None), dict))
    assert scale(rank=4, alpha=8)==2 and scale(rank=4, alpha=8, rslora=True)==4
    assert any("lora_magnitude" in n for n,_ in add_lora(load_policy(saved/"qwen3_vl", device="cpu"), LoraSettings(dora=True)).model.named_parameters())

def test_names_of_the_language_model_do_not_reach_the_tower(saved):
    model = load_policy(saved/"qwen2_5_vl", device="cpu").model
    assert any(n.startswith("model.visual") and n.endswith("up_proj") for n,_ in model.named_modules())
    assert all("language_model" in n for n in lora_targets(model, LoraSettings(targets=("up_proj",))))
    with pytest.raises(InputError, match="targets w_proj match none of the 14"): lora_targets(model, LoraSettings(targets=("w_proj",)))

@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rollouts_are_what_generate_gives_also_in_four_bits(family, saved, data):
    policy = load_policy(saved/family, device="cpu", quantise=4)
    queries = [encode(policy, s) for s in Samples(data)[:3]]
    for q,rs in zip(queries, sample_rollouts(policy, queries, 2, 8, temperature=0)):
        for r in rs:
            ids = torch.tensor([q.prefix+q.suffixes[r.stream]])
            out = policy.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=q.pixels, image_grid_thw=q.grid, do_sample=False,
                                        mm_token_type_ids=(ids==policy.config.image_token_id).long(), max_new_tokens=8, suppress_tokens=policy.suppress_tokens)
            assert r.tokens==out[0, ids.shape[1]:].tolist()
    queries,rollouts = rolled(policy, data, 3)
    kept = torch.tensor([l for rs in rollouts for r in rs for l in r.logps])
    assert (logps(policy, queries, rollouts)-kept).abs().max()<1e-4

def test_a_hybrid_is_noticed_when_it_is_loaded(saved):
    with pytest.warns(UserWarning, match="the unshared baseline"): policy = load_policy(saved/"qwen3_5", device="cpu")
    assert not packs(policy.model) and not packs(add_lora(policy).model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert packs(load_policy(saved/"qwen3_vl", device="cpu").model)

@pytest.mark.parametrize("family,frame", list(zip(FAMILIES, [Frame.resized(96, 96), Frame.unit1000(), Frame.unit1000()])))
def test_frame_and_patches_are_the_family_s(family, frame, saved, data):
    policy = load_policy(saved/family, device="cpu")
    query = encode(policy, Samples(data)[0])
    assert query.frame==frame and query.prefix.count(policy.config.image_token_id)==36
    smaller = encode(load_policy(saved/family, device="cpu", max_pixels=48*48), Samples(data)[0])
    assert smaller.frame==(Frame.resized(48, 48) if family=="qwen2_5_vl" else frame) and smaller.prefix.count(policy.config.image_token_id)==9

@pytest.mark.parametrize("family", FAMILIES[:2])
def test_a_step_of_decoding_can_be_recorded(family, saved, data, monkeypatch):
    "As on a GPU: the same operations, replayed without Python, none of which asks for a value; with grouped heads and an adapter"
    policy = shake(add_lora(load_policy(saved/family, device="cpu")))
    _,wanted = rolled(policy, data, 3)
    made = []
    def record(step, inputs):
        made.append(make_fx(lambda tokens, position, visible, start: step(tokens, position, visible, start))(*inputs))
        return made[-1]
    monkeypatch.setattr(sampler, "graph_recorder", lambda model, device: record)
    _,replayed = rolled(policy, data, 3)
    assert made and [[r.tokens for r in rs] for rs in replayed]==[[r.tokens for r in rs] for rs in wanted]
    used = {str(node.target) for graph in made for node in graph.graph.nodes}
    assert not [name for name in used if "_local_scalar_dense" in name or "lift_fresh" in name or "nonzero" in name], used

def test_a_checkpoint_in_the_published_form(saved, data, tmp_path):
    "Qwen2.5-VL on the hub: text settings at the top of the config, older weight names, pixels as min and max, shards"
    policy = load_policy(saved/"qwen2_5_vl", device="cpu")
    c = policy.config.to_dict()
    text,vision = c.pop("text_config"),c["vision_config"]
    flat = {k:text[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                                "max_position_embeddings", "rms_norm_eps", "initializer_range")}
    flat |= dict(architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", rope_theta=1e4, use_sliding_window=False, sliding_window=32768,
                 max_window_layers=2, rope_scaling=dict(type="mrope", mrope_section=[4, 2, 2]), torch_dtype="bfloat16", tie_word_embeddings=False,
                 vision_config=vision|dict(in_chans=3, spatial_patch_size=8), **{k:v for k,v in c.items() if k.endswith("_token_id")})
    save_policy(policy, tmp_path)
    for f in tmp_path.glob("*.safetensors"): f.unlink()
    (tmp_path/"config.json").write_text(json.dumps(flat))
    (tmp_path/"preprocessor_config.json").write_text(json.dumps(dict(min_pixels=1024, max_pixels=262144, patch_size=8, temporal_patch_size=2, merge_size=2,
        image_mean=[.5]*3, image_std=[.5]*3, image_processor_type="Qwen2VLImageProcessor", processor_class="Qwen2_5_VLProcessor")))
    old = {re.sub(r"^model\.(visual|language_model)\.", lambda m: dict(visual="visual.", language_model="model.")[m[1]], k):v.contiguous()
           for k,v in policy.model.state_dict().items()}
    names,where = list(old),{}
    for i,part in enumerate((names[::2], names[1::2])):
        save_file({k:old[k] for k in part}, tmp_path/f"model-{i}.safetensors", dict(format="pt"))
        where |= {k:f"model-{i}.safetensors" for k in part}
    (tmp_path/"model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=where)))
    again = load_policy(tmp_path, device="cpu")
    queries,rollouts = rolled(policy, data)
    assert (logps(again, queries, rollouts)-logps(policy, queries, rollouts)).abs().max()<1e-5
    assert again.image_processor.size["longest_edge"]==262144 and packs(again.model)
    assert is_quantised(load_policy(tmp_path, device="cpu", quantise=4).model)

def test_a_quantised_policy_without_adapter_survives_the_disk(saved, data, tmp_path):
    policy = load_policy(saved/"qwen3_vl", device="cpu", quantise=4)
    save_policy(policy, tmp_path)
    queries,rollouts = rolled(policy, data)
    again = load_policy(tmp_path, device="cpu")
    assert torch.equal(logps(again, queries, rollouts), logps(policy, queries, rollouts)) and is_quantised(again.model)
    with pytest.raises(InputError, match="quantised already"): load_policy(tmp_path, device="cpu", quantise=4)
    with pytest.raises(InputError, match="can't be saved as torch.float16"): save_policy(policy, tmp_path/"b", torch.float16)

@pytest.mark.parametrize("family", FAMILIES)
def test_both_kinds_of_attention_agree(family, saved, data):
    policy,eager = (load_policy(saved/family, device="cpu", attn_implementation=a) for a in ("sdpa", "eager"))
    assert (policy.config._attn_implementation, eager.config._attn_implementation)==("sdpa", "eager")
    queries,rollouts = rolled(policy, data)
    assert (logps(policy, queries, rollouts)-logps(eager, queries, rollouts)).abs().max()<1e-4
    _,others = rolled(eager, data)
    kept = torch.tensor([l for rs in others for r in rs for l in r.logps])
    assert (logps(policy, queries, others)-kept).abs().max()<1e-4
    with pytest.raises(InputError, match="flash_attention_2.*takes a mask"): load_policy(saved/family, device="cpu", attn_implementation="flash_attention_2")

# Bad input

def edit(path, **changes): path.write_text(json.dumps(json.loads(path.read_text())|changes))

def copy_of(saved, tmp_path, family="qwen3_vl"):
    for f in (saved/family).iterdir(): (tmp_path/f.name).write_bytes(f.read_bytes())
    return tmp_path

@pytest.mark.parametrize("bits", [3, 16, True])
def test_bits_that_there_are_not(bits, saved):
    with pytest.raises(InputError, match=f"quantise={bits}: choose 4 or 8"): load_policy(saved/"qwen3_vl", device="cpu", quantise=bits)

def test_without_bitsandbytes(saved, tmp_path):
    "A real environment without it: links to everything else that is installed"
    site = Path(torch.__file__).parent.parent
    for p in site.iterdir():
        if not p.name.startswith(("bitsandbytes", "__editable__", "ivgr")): (tmp_path/p.name).symlink_to(p)
    code = f"from ivgr.policy import load_policy; load_policy({str(saved/'qwen3_vl')!r}, device='cpu'); print('loads', flush=True); load_policy({str(saved/'qwen3_vl')!r}, device='cpu', quantise=4)"
    env = {k:v for k,v in os.environ.items() if not k.startswith("PYTHON")}|dict(PYTHONPATH=f"{Path(ivgr.__file__).parent.parent}:{tmp_path}")
    r = subprocess.run([sys.executable, "-S", "-c", code], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "loads" in r.stdout and "InputError: 4 bits need bitsandbytes, which is not installed: pip install 'ivgr[qlora]'" in r.stderr, r.stdout+r.stderr

@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "no_such_type"])
def test_other_model_types(kind, saved, tmp_path):
    edit(copy_of(saved, tmp_path)/"config.json", model_type=kind)
    with pytest.raises(InputError, match=kind): load_policy(tmp_path, device="cpu")

def test_missing_special_tokens(saved, tmp_path):
    edit(copy_of(saved, tmp_path)/"config.json", image_token_id=100)
    with pytest.raises(InputError, match="image_token_id=100 is no special token"): load_policy(tmp_path, device="cpu")

@pytest.mark.parametrize("changes,words", [(dict(patch_size=14), "patch_size 14, the model 8"), (dict(merge_size=1), "merge_size 1, the model 2"),
                                           (dict(temporal_patch_size=1), "temporal_patch_size 1, the model 2")])
def test_a_processor_of_another_model(changes, words, saved, tmp_path):
    edit(next(copy_of(saved, tmp_path).glob("*processor_config.json")), **changes)
    with pytest.raises(InputError, match=words): load_policy(tmp_path, device="cpu")

@pytest.mark.parametrize("name,words", [("tokenizer*", "tokenizer do not belong together"), ("*processor_config.json", "no usable image processor")])
def test_a_directory_without_its_reader(name, words, saved, tmp_path):
    for f in copy_of(saved, tmp_path).glob(name): f.unlink()
    with pytest.raises(InputError, match=words): load_policy(tmp_path, device="cpu")

def test_weights_that_are_missing_cut_or_another_s(saved, tmp_path):
    weights = copy_of(saved, tmp_path)/"model.safetensors"
    state = load_file(weights)
    save_file({k:v for k,v in state.items() if ".layers.1." not in k}, weights, dict(format="pt"))
    with pytest.raises(InputError, match="lack .* of the model's, such as 'model.language_model.layers.1"): load_policy(tmp_path, device="cpu")
    save_file({k:v[:3] if k.endswith("embed_tokens.weight") else v for k,v in state.items()}, weights, dict(format="pt"))
    with pytest.raises(InputError, match="can't load the weights"): load_policy(tmp_path, device="cpu")
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="can't load the weights"): load_policy(tmp_path, device="cpu")
    weights.unlink()
    with pytest.raises(InputError, match="can't load the weights"): load_policy(tmp_path, device="cpu", quantise=4)

def test_an_adapter_and_a_base_that_do_not_go_together(saved, tmp_path):
    lora = add_lora(load_policy(saved/"qwen3_vl", device="cpu"))
    save_policy(lora, tmp_path/"a")
    config = tmp_path/"a"/"adapter_config.json"
    for base,words in ((str(saved/"qwen3_5"), "does not fit its base"), (str(tmp_path/"gone"), "the base of the adapter"), (None, "does not name its base")):
        edit(config, base_model_name_or_path=base)
        with pytest.raises(InputError, match=words): load_policy(tmp_path/"a", device="cpu")
    config.write_text("{")
    with pytest.raises(InputError, match="does not name its base"): load_policy(tmp_path/"a", device="cpu")
    save_policy(lora, tmp_path/"a")
    save_policy(lora, tmp_path/"b")
    edit(config, base_model_name_or_path=str(tmp_path/"b"))
    with pytest.raises(InputError, match="is an adapter itself"): load_policy(tmp_path/"a", device="cpu")
    edit(config, base_model_name_or_path=str(saved/"qwen3_vl"))
    weights = tmp_path/"a"/"adapter_model.safetensors"
    state = load_file(weights)
    some = next(k for k in state if "up_proj.lora_B" in k)
    for changed in ({k:v for k,v in state.items() if k!=some}, state|{some.replace("up_proj", "other_proj"):state[some].clone()}):
        save_file(changed, weights, dict(format="pt"))
        with pytest.raises(InputError, match="does not fit its base .*1 matrices without a counterpart"): load_policy(tmp_path/"a", device="cpu")
    weights.unlink()
    with pytest.raises(InputError, match="does not fit its base"): load_policy(tmp_path/"a", device="cpu")

def test_an_adapter_without_its_reader_reads_as_its_base_does(saved, tmp_path):
    save_policy(add_lora(load_policy(saved/"qwen3_vl", device="cpu")), tmp_path)
    for f in tmp_path.iterdir():
        if not f.name.startswith("adapter"): f.unlink()
    assert load_policy(tmp_path, device="cpu").prompts==TINY_PROMPTS

# The hub, as far as it can be had here: a server that takes the three calls of a push

class Hub(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.calls.append((self.path, self.headers.get("Authorization"), body))
        if self.server.refuse: return self.send({"error":"Invalid username or password."}, 401)
        if self.path.endswith("/preupload/main"):
            return self.send(dict(files=[dict(path=f["path"], uploadMode="regular", shouldIgnore=False) for f in json.loads(body)["files"]]))
        self.send(dict(url=f"http://{self.headers['Host']}/me/mine", name="me/mine", commitUrl=f"http://{self.headers['Host']}/me/mine/commit/abc",
                       commitOid="abc", pullRequestUrl=None, success=True))
    def send(self, data, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())
    def log_message(self, *args): pass

@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls,server.refuse = [],False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("ivgr.train.hub.HfApi", lambda: HfApi(f"http://127.0.0.1:{server.server_port}", token="hf_secret"))
    yield server
    server.shutdown(); server.server_close()

def pushed(server):
    "Files of the one commit"
    commits = [b for p,_,b in server.calls if "/commit/" in p]
    assert len(commits)==1 and {auth for _,auth,_ in server.calls}=={"Bearer hf_secret"}
    return {l["value"]["path"]:b64decode(l["value"]["content"]) for l in map(json.loads, commits[0].decode().splitlines()) if l["key"]=="file"}

@pytest.mark.parametrize("refuse", [False, True])
def test_push(refuse, saved, hub):
    hub.refuse = refuse
    lora = add_lora(load_policy(saved/"qwen3_vl", device="cpu"))
    if refuse:
        with pytest.raises(InputError, match="(?s)can't push to 'me/mine'.*write access"): push_policy(lora, "me/mine")
    else: assert "commit/abc" in push_policy(lora, "me/mine")
    path,_,body = hub.calls[0]
    assert path=="/api/repos/create" and json.loads(body)["visibility"]=="private"
    if refuse: return
    files = pushed(hub)
    assert {"adapter_config.json", "adapter_model.safetensors", "prompts.json", "tokenizer.json", "preprocessor_config.json"}<=set(files)
    assert b"lora_A" in files["adapter_model.safetensors"][:2000]

def test_a_hub_that_does_not_answer_is_told(saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("ivgr.train.hub.HfApi", lambda: HfApi("http://127.0.0.1:9", token="hf_secret"))
    with pytest.raises(InputError, match="can't push to 'me/mine'"): push_policy(load_policy(saved/"qwen3_vl", device="cpu"), "me/mine")

@pytest.mark.parametrize("command", ["sft", "train"])
def test_the_end_of_a_run_is_on_the_hub(command, hub, data, tmp_path, capsys, monkeypatch):
    "The policy as it was saved, with reader, prompts, card and settings; neither logs nor replies nor the archive"
    from ivgr.tools.cli import main
    from ivgr.trainer import DualStreamTrainer
    argv = [command, "--data", str(data), "--policy", "tiny", "--output_dir", str(tmp_path/"run"), "--lora_rank", "2", "--max_steps", "1", "--save_steps", "1",
            "--per_device_train_batch_size", "2", "--logging_steps", "1", "--use_cpu", "true", "--push_to_hub", "true", "--hub_model_id", "mine"]
    if command=="train": argv += ["--n_rollouts", "2", "--max_new_tokens", "8"]
    assert main([*argv, "--hub_private_repo", "false"])==0
    assert "pushed: " in capsys.readouterr().out and json.loads(hub.calls[0][2])["visibility"]=="public"
    files = pushed(hub)
    here = {p.name for p in (tmp_path/"run").iterdir() if p.is_file()}
    assert set(files)<=here and here-set(files)=={"metrics.jsonl", "training_args.bin", "data_report.json"}|({"archive.jsonl", "completions.jsonl"} if command=="train" else set())
    assert all(content==(tmp_path/"run"/name).read_bytes() for name,content in files.items()) and b"Limits" in files["README.md"]
    assert not any(k.startswith("hub") or "push" in k for k in json.loads(files["run.json"]))
    hub.refuse = True
    monkeypatch.setattr(DualStreamTrainer, "roll_out", None)
    assert main([*argv, "--output_dir", str(tmp_path/"other")])==2 and not (tmp_path/"other").exists()  # told before any work
    assert "can't push to 'mine'" in capsys.readouterr().err

# The trainer. Random weights never earn a reward, so here a reply is worth something by its tokens

@pytest.fixture
def toy_reward(monkeypatch):
    def score(groups, archive, judge, batch, **settings):
        for g in groups:
            for r in g.rollouts: r.reward = Reward({}, float(sum(r.tokens)%7))
        return {}
    monkeypatch.setattr("ivgr.trainer.score_groups", score)

def train_args(out, data, policy, **settings):
    from ivgr.trainer import DualStreamConfig
    settings = dict(max_steps=2, save_steps=1, per_device_train_batch_size=2, n_rollouts=2, max_new_tokens=12, learning_rate=.01, warmup_steps=0)|settings
    return DualStreamConfig(output_dir=str(out), data=str(data), policy=str(policy), use_cpu=True, **settings)

def trained(model): return {n:p.detach().clone() for n,p in model.named_parameters() if p.requires_grad}

def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)

@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_qlora_run_ends_where_the_whole_one_does(family, saved, data, tmp_path, toy_reward):
    from ivgr.train.rl import train
    settings = dict(quantise=4, lora_rank=4, lora_merger=True, beta=.01)
    whole = train(train_args(tmp_path/"a", data, saved/family, **settings), progress=False)
    train(train_args(tmp_path/"b", data, saved/family, **settings|dict(max_steps=1)), progress=False)
    torch.manual_seed(5)
    resumed = train(train_args(tmp_path/"b", data, saved/family, **settings), resume=True, progress=False)
    assert same(trained(whole.model), trained(resumed.model))
    start = trained(add_lora(load_policy(saved/family, device="cpu", quantise=4), LoraSettings(4, merger=True)).model)
    assert not any(torch.equal(p, start[n]) for n,p in trained(whole.model).items() if "lora_B" in n)
    lines = [json.loads(l) for l in (tmp_path/"a"/"metrics.jsonl").read_text().splitlines()]
    assert lines[0]["textual/kl"]==0 and lines[-1]["textual/kl"]>0
    queries,rollouts = rolled(whole, data)
    assert torch.allclose(logps(load_policy(tmp_path/"a", device="cpu", quantise=4), queries, rollouts), logps(whole, queries, rollouts), rtol=0, atol=1e-5)

def test_checkpointing_does_not_change_the_run(saved, data, tmp_path, toy_reward):
    from ivgr.train.rl import train
    run = lambda name, **settings: trained(train(train_args(tmp_path/name, data, saved/"qwen3_vl", lora_rank=4, lora_vision=True, **settings), progress=False).model)
    plain,other = run("plain"),run("checkpoints", gradient_checkpointing=True)
    assert plain.keys()==other.keys() and max((plain[k]-other[k]).abs().max() for k in plain)<1e-4
    assert all(p.any() for n,p in plain.items() if "lora_B" in n)

def test_checkpointing_leaves_a_frozen_tower_alone(saved, data, tmp_path, toy_reward):
    "transformers asks for gradients at its patches, which would be kept, computed again and gone back through for nothing"
    from ivgr.train.rl import train
    from ivgr.trainer import DualStreamTrainer
    seen = []
    class Looks(DualStreamTrainer):
        def training_step(self, *args):
            tower = self.model.get_base_model().model.visual
            look = tower.register_forward_hook(lambda module, inputs, output: seen.append((torch.is_grad_enabled(), output[0].requires_grad)))
            try: return super().training_step(*args)
            finally: look.remove()
    args = train_args(tmp_path, data, saved/"qwen2_5_vl", lora_rank=4, gradient_checkpointing=True)
    learned = trained(train(args, progress=False, trainer_class=Looks).model)
    assert {needs for grad,needs in seen if grad}=={False}, seen
    assert all(p.any() for n,p in learned.items() if "lora_B" in n)

def test_a_run_goes_on_from_an_adapter(saved, data, tmp_path, toy_reward):
    from ivgr.train.rl import train
    first = train(train_args(tmp_path/"a", data, saved/"qwen2_5_vl", lora_rank=4), progress=False)
    before = trained(first.model)
    second = train(train_args(tmp_path/"b", data, tmp_path/"a", quantise=8), progress=False)
    assert before.keys()==trained(second.model).keys() and not same(before, trained(second.model))
    with pytest.raises(InputError, match="has an adapter already"): train(train_args(tmp_path/"c", data, tmp_path/"a", lora_rank=4), progress=False)

def test_settings_on_the_command_line():
    from ivgr.tools.cli import read_settings, settings_parser
    from ivgr.trainer import DualStreamConfig
    flags = "--quantise 4 --lora_rank 8 --lora_targets q_proj v_proj --lora_merger true --rslora true --gradient_checkpointing true".split()
    args,_ = read_settings(settings_parser(DualStreamConfig, "ivgr train", ""), [*flags, "--use_cpu", "true"])
    assert args.quantise==4 and args.lora==LoraSettings(8, merger=True, targets=("q_proj", "v_proj"), rslora=True)
    assert read_settings(settings_parser(DualStreamConfig, "ivgr train", ""), ["--use_cpu", "true"])[0].lora is None
