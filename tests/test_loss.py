"Random checks of the loss against a slow loop in plain Python, and of what must hold for any input"
import math

import pytest
import torch
from hypothesis import assume, given, strategies as st

from ivgr.core import InputError
from ivgr.loss import MAX_LOG_RATIO, clipped_surrogate, group_advantages, k3_kl, policy_loss

logps = st.floats(-12, 0, width=32)
run_settings = st.fixed_dictionaries(dict(clip_low=st.floats(0, .95), clip_high=st.floats(0, 2),
    dual_clip=st.none() | st.floats(1.01, 20), beta=st.sampled_from([0., .01, 1.])))


@st.composite
def batches(draw, values=logps, dtype=torch.float64):
    "Tensors for `policy_loss`; at least one token counts"
    R,T = draw(st.integers(1, 4)),draw(st.integers(1, 5))
    grid = lambda s: torch.tensor(draw(st.lists(s, min_size=R*T, max_size=R*T))).view(R, T)
    mask = grid(st.booleans())
    mask[draw(st.integers(0, R-1)), draw(st.integers(0, T-1))] = True
    A = draw(st.lists(st.sampled_from([0.]) | st.floats(-3, 3, width=32), min_size=R, max_size=R))
    return dict(logp=grid(values).to(dtype).requires_grad_(), old_logp=grid(values).to(dtype),
                advantages=torch.tensor(A, dtype=dtype), mask=mask, ref_logp=grid(values).to(dtype))


def slow(b, clip_low, clip_high, dual_clip, beta, logp=None):
    "Sum over tokens, written from the formula; `logp` replaces the policy's"
    total = 0.
    for i,A in enumerate(b['advantages'].tolist()):
        for t in range(b['mask'].shape[1]):
            if not b['mask'][i,t]: continue
            lp,old,ref = ((b['logp'] if logp is None else logp)[i,t].item(), b['old_logp'][i,t].item(),
                          b['ref_logp'][i,t].item())
            rho = math.exp(lp-old)
            token = max(-A*rho, -A*min(max(rho, 1-clip_low), 1+clip_high))
            if A<0 and dual_clip is not None: token = min(token, -A*dual_clip)
            total += token + beta*(math.exp(ref-lp) - (ref-lp) - 1)
    return total


def on_a_kink(b, clip_low, clip_high, dual_clip, margin):
    "Whether a token is so near a bound that a finite difference straddles it"
    d = (b['logp']-b['old_logp']).detach()
    edges = [math.log1p(-clip_low), math.log1p(clip_high)] + ([] if dual_clip is None else [math.log(dual_clip)])
    return any(((d-e).abs()<=margin).any() for e in edges)


def fixed(R=16, T=25, seed=0):
    "A batch in which every bound is reached"
    g = torch.Generator().manual_seed(seed)
    old,ref = -4*torch.rand(2, R, T, generator=g, dtype=torch.float64)
    logp = old + torch.randn(R, T, generator=g, dtype=torch.float64)
    return dict(logp=logp.requires_grad_(), old_logp=old, ref_logp=ref,
                advantages=group_advantages(torch.rand(R//4, 4, generator=g, dtype=torch.float64)).view(-1),
                mask=torch.rand(R, T, generator=g)<.7)


paper = dict(clip_low=.2, clip_high=.28, dual_clip=3., beta=.01)


@given(batches(), run_settings)
def test_value_is_that_of_the_slow_loop(b, s):
    loss,stats = policy_loss(**b, **s)
    n = b['mask'].sum().item()
    assert loss.item() == pytest.approx(slow(b, **s)/n, rel=1e-9, abs=1e-9)
    assert stats['tokens'] == n
    assert not any(v.requires_grad for v in stats.values())


@given(batches(), run_settings)
def test_stats_are_means_over_the_mask(b, s):
    edges = [1-s['clip_low'], 1+s['clip_high']] + ([] if s['dual_clip'] is None else [s['dual_clip']])
    ratio = (b['logp']-b['old_logp']).detach().exp()
    assume(not any(((ratio-e).abs()<1e-9).any() for e in edges))
    _,stats = policy_loss(**b, **s)
    tokens = [(rho, A, x) for rhos,A,xs,ms in zip(ratio.tolist(), b['advantages'].tolist(),
                                                  (b['ref_logp']-b['logp']).tolist(), b['mask'].tolist())
              for rho,x,m in zip(rhos, xs, ms) if m]
    dual = math.inf if s['dual_clip'] is None else s['dual_clip']
    want = dict(clip_low=[A<0 and rho<1-s['clip_low'] for rho,A,_ in tokens],
                clip_high=[A>0 and rho>1+s['clip_high'] for rho,A,_ in tokens],
                clip_dual=[A<0 and rho>dual for rho,A,_ in tokens],
                ratio=[rho for rho,*_ in tokens], kl=[math.exp(x)-x-1 for *_,x in tokens])
    for k,v in want.items(): assert stats[k].item() == pytest.approx(math.fsum(v)/len(v), rel=1e-9, abs=1e-9), k


@given(batches(), run_settings)
def test_gradient_is_the_slow_loops_slope(b, s):
    h = 1e-6
    assume(not on_a_kink(b, s['clip_low'], s['clip_high'], s['dual_clip'], 10*h))
    policy_loss(**b, **s, n_tokens=1)[0].backward()
    direction = torch.randn(b['logp'].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = lambda step: slow(b, **s, logp=b['logp'].detach()+step*direction)
    want = (at(h)-at(-h))/(2*h)
    scale = 1 + (b['advantages'].abs()[:,None]*(b['logp']-b['old_logp']).exp()).max().item() + \
            s['beta']*(b['ref_logp']-b['logp']).exp().max().item()
    assert (b['logp'].grad*direction).sum().item() == pytest.approx(want, rel=1e-5, abs=1e-6*scale)


@pytest.mark.parametrize("planted", [dict(clip_low=.28, clip_high=.2), dict(clip_high=.2), dict(dual_clip=None),
    dict(dual_clip=2.), dict(beta=0.), dict(beta=-.01)], ids=str)
def test_a_planted_mistake_is_noticed(planted):
    b = fixed()
    loss,stats = policy_loss(**b, **paper)
    n = b['mask'].sum().item()
    assert min(stats[k] for k in ('clip_low', 'clip_high', 'clip_dual'))>.01   # all of the formula is in use
    assert loss.item() == pytest.approx(slow(b, **paper)/n, rel=1e-12)
    assert abs(loss.item() - slow(b, **(paper|planted))/n)>1e-3


@given(batches(), run_settings, st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_padding_is_ignored_and_gets_no_gradient(b, s, junk):
    out = ~b['mask']
    dirty = b | {k: b[k].detach().masked_fill(out, junk) for k in ('logp', 'old_logp', 'ref_logp')}
    dirty['logp'].requires_grad_()
    (loss,_),(dirty_loss,_) = policy_loss(**b, **s),policy_loss(**dirty, **s)
    loss.backward()
    dirty_loss.backward()
    assert torch.equal(loss, dirty_loss) and torch.equal(b['logp'].grad, dirty['logp'].grad)
    assert not dirty['logp'].grad[out].any()


@given(batches())
def test_at_ratio_one_it_is_the_plain_policy_gradient(b):
    b['logp'] = b['old_logp'].clone().requires_grad_()
    loss,stats = policy_loss(**b)
    loss.backward()
    n = b['mask'].sum()
    torch.testing.assert_close(b['logp'].grad, -b['advantages'][:,None]*b['mask']/n)
    assert stats['ratio']==1 and stats['clip_low']==stats['clip_high']==stats['clip_dual']==0


@given(batches(), run_settings, st.data())
def test_micro_batches_add_up(b, s, data):
    R,n = len(b['logp']),b['mask'].sum()
    cuts = sorted(data.draw(st.lists(st.integers(0, R), max_size=3)))
    whole,stats = policy_loss(**b, **s)
    parts = [policy_loss(**{k: v[i:j] for k,v in b.items()}, **s, n_tokens=n) for i,j in zip([0]+cuts, cuts+[R])]
    total = sum(loss for loss,_ in parts)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(x, b['logp'])[0] for x in (total, whole)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    for k in ('clip_low', 'clip_high', 'clip_dual', 'ratio', 'kl'):
        torch.testing.assert_close(sum(p[k]*p['tokens'] for _,p in parts)/n, stats[k], rtol=1e-12, atol=1e-12)


@given(batches(values=st.floats(-2.**100, 0, width=32) | st.floats(-200, 0, width=32), dtype=torch.float32),
       run_settings, st.sampled_from([torch.float32, torch.bfloat16]))
def test_nothing_overflows(b, s, dtype):
    b['logp'] = b['logp'].detach().to(dtype).requires_grad_()
    loss,stats = policy_loss(**b, **s)
    loss.backward()
    assert loss.isfinite() and b['logp'].grad.isfinite().all() and b['logp'].grad.dtype==dtype
    assert all(v.isfinite() for v in stats.values())


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=20))
def test_no_token_is_pushed_where_the_surrogate_is_flat(ds):
    d = torch.tensor(ds, dtype=torch.float64, requires_grad=True)
    for sign in 1.,-1.:
        g, = torch.autograd.grad(clipped_surrogate(d, torch.full_like(d, sign)).sum(), d)
        flat = d>math.log(1.28) if sign>0 else (d<math.log(.8)) | (d>math.log(3))
        assert not g[flat].any()
        torch.testing.assert_close(g[~flat], -sign*d[~flat].exp())


@given(st.lists(st.floats(-MAX_LOG_RATIO, MAX_LOG_RATIO), min_size=1, max_size=20))
def test_k3_is_never_negative_and_zero_only_at_equality(xs):
    x = torch.tensor(xs, dtype=torch.float32)
    k = k3_kl(torch.zeros_like(x), x)
    assert (k>=0).all() and not k[x==0].any() and k[x.abs()>1e-3].all()
    torch.testing.assert_close(k.double(), x.double().expm1()-x.double(), rtol=1e-5, atol=1e-9)


rewards = st.integers(2, 12).flatmap(lambda G: st.lists(
    st.lists(st.sampled_from([0., .3, .7, 1., 2.7, 3.]) | st.floats(-5, 5, width=32), min_size=G, max_size=G),
    min_size=1, max_size=4))


@given(rewards, st.integers(0, 10**6))
def test_advantages(rows, seed):
    r = torch.tensor(rows, dtype=torch.float64)
    a = group_advantages(r)
    for row,out in zip(rows, a.tolist()):
        mean = math.fsum(row)/len(row)
        std = math.sqrt(math.fsum((x-mean)**2 for x in row)/(len(row)-1))
        assert out == pytest.approx([(x-mean)/(std+1e-6) for x in row], abs=1e-8)
    perm = torch.randperm(r.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(group_advantages(r[:,perm]), a[:,perm], rtol=0, atol=1e-8)
    spread = r.std(1)>.01                              # scale and offset do not matter, up to eps
    torch.testing.assert_close(group_advantages(7*r-3)[spread], a[spread], rtol=1e-3, atol=0)


@given(st.floats(-1e4, 1e4, width=32), st.integers(2, 64))
def test_equal_rewards_are_exactly_zero(value, G): assert not group_advantages(torch.full((1,G), value)).any()


@pytest.mark.parametrize("change,message", [
    (dict(advantages=torch.zeros(25)), r"advantages is \(25,\), but logp has 16"),
    (dict(old_logp=torch.zeros(16,1)), r"old_logp is \(16, 1\), but logp is \(16, 25\)"),
    (dict(ref_logp=torch.zeros(25,16)), r"ref_logp is \(25, 16\)"),
    (dict(mask=torch.ones(16,24).bool()), r"mask is \(16, 24\)"),
    (dict(mask=torch.ones(16,25)), "mask is torch.float32"),
    (dict(logp=torch.zeros(16)), r"shape \(R, T\), got \(16,\)"),
    (dict(old_logp=torch.full((16,25), -math.inf)), r"old_logp\[\d+, \d+\] is -inf"),
    (dict(ref_logp=None, beta=.1), "beta=0.1 needs ref_logp"),
    (dict(n_tokens=-4), "n_tokens=-4"),
    (dict(n_tokens=torch.tensor(0)), "n_tokens=0"),
    (dict(clip_low=1.), "clip_low=1.0"), (dict(clip_low=-.1), "clip_low=-0.1"),
    (dict(clip_high=math.inf), "clip_high=inf"),
    (dict(dual_clip=1.), "dual_clip=1.0"), (dict(dual_clip=math.nan), "dual_clip=nan"), (dict(beta=-1.), "beta=-1.0")])
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message) as e: policy_loss(**(fixed()|change))
    setting = change.keys() & {'clip_low', 'clip_high', 'dual_clip'}
    assert isinstance(e.value, InputError) or not setting
