"""What a step costs is counted, not timed: tokens into the language model, images into the vision tower, forwards of each."""
from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from ivgr.studies.bench import Case, bench_policy, bench_samples, build_ivgr, ideal_tokens, measure_step
from ivgr.policy import encode
from ivgr.tree import backbone, block_mask


@pytest.fixture(params=[dict(), dict(queries=2), dict(n=3, length=5), dict(lora_rank=4, checkpointing=True)], ids=str)
def case(request): return Case(**dict(side=4, n=2, length=3) | request.param)


@pytest.mark.parametrize('shared', [True, False])
def test_every_token_and_image_once(case, shared, tmp_path):
    torch.set_num_threads(1)
    policy = bench_policy(case)
    queries = [encode(policy, s) for s in bench_samples(policy, case)]
    arm = build_ivgr(case, policy, str(tmp_path), shared)
    forwards = Counter()
    for model in filter(None, (policy.model, arm.trainer.ref_model)):
        backbone(model)[0].language_model.register_forward_pre_hook(lambda *args: forwards.update([arm.meter.now]))
    measured = measure_step(arm)
    rollouts = 2*case.n*case.queries
    if shared: tokens,images = sum(ideal_tokens(q, case.n, case.length) for q in queries),case.queries
    else:
        tokens = sum(case.n*(len(q.prefix)+len(b)+case.length) for q in queries for b in q.suffixes.values())
        images = rollouts
    fed = measured['tokens']
    assert fed['sampling']+fed['decoding']==tokens-rollouts  # nothing follows the last token of a reply
    assert fed['decoding']==rollouts*(case.length-1)
    assert fed['reference']==fed['update']==tokens
    assert measured['images']==dict(sampling=images, reference=images, update=images)
    samplings = 1 if shared else 2  # the unshared baseline samples one stream after the other
    assert forwards==dict(sampling=samplings, decoding=samplings*(case.length-1), reference=case.queries, update=case.queries)


def test_flex_attention_is_compiled_once_for_trees_of_all_sizes():
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(flex_attention, dynamic=True, backend='aot_eager')  # the graph alone, no kernels
    for rows,prefix,graphs in ((300, 100, 1), (450, 220, 1), (700, 301, 1), (301, 1, 1), (500, 500, 2), (600, 600, 2)):
        q,k,v = (torch.randn(1, heads, rows, 16) for heads in (4, 2, 2))
        sees = torch.ones(rows, rows, dtype=torch.bool).tril()
        sees[prefix+(rows-prefix)//2:, prefix:prefix+(rows-prefix)//2] = False
        with torch.no_grad(): out = compiled(q, k, v, block_mask=block_mask(sees[None, None, prefix:], rows), enable_gqa=True)
        assert torch.allclose(out, torch.nn.functional.scaled_dot_product_attention(q, k, v, sees, enable_gqa=True), atol=1e-5)
        assert counters['stats']['unique_graphs']==graphs, rows
