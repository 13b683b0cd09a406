"""Our loss against the one in TRL's `GRPOTrainer`, which is run as it is.

A real trainer is built around a tiny language model. Either the model computes the log-probabilities, or, to reach
every branch, the one method that asks it for them returns given numbers; all that follows is TRL's own code.
"""
import pytest
import torch

from ivgr.loss import group_advantages, importance_weights, policy_loss
from ivgr.train.objectives import batch_deviation, centred_advantages, divisors, part_advantages, reply_weights

trl = pytest.importorskip('trl', minversion='1.16', reason="TRL is the oracle here, and is needed for this test only")

WORDS = "<pad> <eos> <unk> a b c d e f g h".split()
PROMPTS = ["a b c", "d e"]
N = 4  # rollouts of each prompt


@pytest.fixture(scope='module')
def trainer(tmp_path_factory):
    "A GRPOTrainer whose reward function takes the next number of `trainer.rewards`"
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    words = Tokenizer(models.WordLevel({w: i for i,w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), hidden_size=16, intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, eos_token_id=1,
        bos_token_id=None))
    args = trl.GRPOConfig(output_dir=str(tmp_path_factory.mktemp('trl')), use_cpu=True, bf16=False, report_to=[],
        disable_tqdm=True, num_generations=N, per_device_train_batch_size=len(PROMPTS)*N, max_completion_length=6,
        scale_rewards='group', use_bias_correction_kl=False)
    given = lambda completions, **kw: [trainer.rewards.pop(0) for _ in completions]
    trainer = trl.GRPOTrainer(model, reward_funcs=given, args=args, processing_class=tokenizer,
                              train_dataset=Dataset.from_dict(dict(prompt=PROMPTS)))
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop, which is not run here
    trainer.model.train()
    return trainer


def tensors(R=8, T=15, spread=1., seed=0):
    "A random batch in which every bound is reached"
    g = torch.Generator().manual_seed(seed)
    old,ref = -4*torch.rand(2, R, T, generator=g, dtype=torch.float64)
    mask = torch.arange(T)<torch.randint(1, T+1, (R,1), generator=g)
    return dict(logp=(old+spread*torch.randn(R, T, generator=g, dtype=torch.float64)).requires_grad_(), old_logp=old,
                ref_logp=ref, mask=mask, advantages=torch.randn(R, generator=g, dtype=torch.float64))


def configure(trainer, monkeypatch, clip_low, clip_high, dual_clip, beta, loss_type='dapo', corrected=False):
    "Our settings by TRL's names, until the test ends"
    for k,v in dict(epsilon_low=clip_low, epsilon_high=clip_high, beta=beta, loss_type=loss_type).items():
        monkeypatch.setattr(trainer, k, v)
    for k,v in dict(delta=dual_clip, use_bias_correction_kl=corrected).items(): monkeypatch.setattr(trainer.args, k, v)


def theirs(trainer, monkeypatch, b, clip_low, clip_high, dual_clip, beta, loss_type, n_tokens=None, corrected=False, weights=None):
    "Value, gradient and metrics of TRL's loss on these tensors"
    configure(trainer, monkeypatch, clip_low, clip_high, dual_clip, beta, loss_type, corrected)
    logp = b['logp'].detach().requires_grad_()
    monkeypatch.setattr(trainer, '_get_per_token_logps_and_entropies',
                        lambda *args, **kw: (logp, torch.zeros_like(logp), None))  # no entropies, no auxiliary loss
    monkeypatch.setattr(trainer, 'use_vllm', weights is not None)
    trainer._metrics['train'].clear()
    mask = b['mask'].long()
    ids = torch.ones_like(mask)
    loss = trainer.compute_loss(trainer.model, dict(prompt_ids=ids, prompt_mask=ids, completion_ids=ids,
        completion_mask=mask, advantages=b['advantages'], old_per_token_logps=b['old_logp'],
        ref_per_token_logps=b['ref_logp'], num_items_in_batch=mask.sum() if n_tokens is None else n_tokens)
        | ({} if weights is None else dict(importance_sampling_ratio=weights)))
    grad, = torch.autograd.grad(loss, logp)
    return loss.detach(), grad, {k: v[-1] for k,v in trainer._metrics['train'].items()}


def ours(b, **kw):
    loss,stats = policy_loss(**b, **kw)
    return loss.detach(), torch.autograd.grad(loss, b['logp'])[0], stats


close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
SETTINGS = [dict(clip_low=.2, clip_high=.28, dual_clip=3., beta=.01),  # the paper's run
            dict(clip_low=.2, clip_high=.28, dual_clip=None, beta=0.),
            dict(clip_low=.2, clip_high=.2, dual_clip=None, beta=.5),
            dict(clip_low=.05, clip_high=.6, dual_clip=1.7, beta=0.),
            dict(clip_low=.9, clip_high=0., dual_clip=10., beta=1.)]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('spread', [0., .1, 1.])
@pytest.mark.parametrize('loss_type', ['dapo', 'bnpo'])
@pytest.mark.parametrize('setting', SETTINGS, ids=str)
def test_same_value_gradient_and_metrics(trainer, monkeypatch, setting, loss_type, spread, seed):
    b = tensors(spread=spread, seed=seed)
    (loss,grad,stats),(want,want_grad,metrics) = ours(b, **setting),theirs(trainer, monkeypatch, b, **setting,
                                                                         loss_type=loss_type)
    close(loss, want)
    close(grad, want_grad)
    for k,v in dict(clip_low='clip_ratio/low_mean', clip_high='clip_ratio/high_mean').items():
        assert stats[k].item() == pytest.approx(metrics[v])
    if setting['beta']: assert stats['kl'].item() == pytest.approx(metrics['kl'])
    if spread==1 and setting['dual_clip']==3: assert min(stats[k] for k in ('clip_low', 'clip_high', 'clip_dual'))>.01


@pytest.mark.parametrize('setting', [s for s in SETTINGS if not s['beta']], ids=str)  # TRL's KL term has no weights
def test_same_importance_weights(trainer, monkeypatch, setting):
    b = tensors()
    sampler = b['old_logp']+torch.randn(b['old_logp'].shape, dtype=torch.float64)
    weights = (b['old_logp']-sampler).exp().clamp(max=2.)   # as in TRL's mode `token_truncate`
    assert trainer.vllm_importance_sampling_correction
    want = theirs(trainer, monkeypatch, b, **setting, loss_type='dapo', weights=weights)
    loss,grad,_ = ours(b|dict(weights=importance_weights(b['old_logp'], sampler)), **setting)
    close(loss, want[0])
    close(grad, want[1])
    assert not torch.allclose(grad, ours(b, **setting)[1])


@pytest.mark.parametrize('setting', SETTINGS, ids=str)
def test_same_share_of_a_larger_batch(trainer, monkeypatch, setting):
    "`n_tokens` is the normaliser of TRL's `dapo`"
    b = tensors()
    close(ours(b, **setting, n_tokens=1234)[1],
          theirs(trainer, monkeypatch, b, **setting, loss_type='dapo', n_tokens=torch.tensor(1234))[1])


@pytest.mark.parametrize('change', [dict(clip_low=.28, clip_high=.2), dict(dual_clip=None), dict(beta=0.),
                                    dict(loss_type='grpo'), dict(corrected=True)], ids=str)
def test_the_oracle_would_notice(trainer, monkeypatch, change):
    b,setting = tensors(),SETTINGS[0]
    _,grad,_ = ours(b, **setting)
    _,other,_ = theirs(trainer, monkeypatch, b, **(setting | dict(loss_type='dapo') | change))
    assert (grad-other).abs().max()>1e-4


def generate(trainer, rewards):
    "Let TRL sample, score with these rewards, and normalise"
    torch.manual_seed(1)
    trainer.rewards = rewards.flatten().tolist()
    return trainer._generate_and_score_completions([dict(prompt=p) for p in PROMPTS for _ in range(N)])


@pytest.mark.parametrize('rewards', [[[1.,0.,0.,1.],[2.,2.,2.,2.]], [[2.7,1.3,0.,3.],[.1,.2,.3,4.]]], ids=str)
def test_same_advantages(trainer, rewards):
    "TRL adds 1e-4 to the standard deviation, the paper 1e-6; at an equal eps they agree"
    rewards = torch.tensor(rewards)
    want = generate(trainer, rewards)['advantages'].view(-1, N)
    torch.testing.assert_close(group_advantages(rewards, eps=1e-4), want)


def test_same_step_of_a_real_model(trainer, monkeypatch):
    "Prompts of different lengths, sampled replies, real log-probabilities: the gradient of every parameter"
    rewards = torch.tensor([[1.,0.,0.,2.],[2.,1.,2.,0.]])
    batch = generate(trainer, rewards)
    mask = batch['completion_mask'].bool()
    assert len(set(mask.sum(1).tolist()))>1 and len(set(batch['prompt_mask'].sum(1).tolist()))>1
    g = torch.Generator().manual_seed(0)
    model = trainer.model
    ids = torch.cat([batch['prompt_ids'], batch['completion_ids']], 1)
    seen = torch.cat([batch['prompt_mask'], batch['completion_mask']], 1)
    logits = model(input_ids=ids, attention_mask=seen).logits[:,-mask.shape[1]-1:-1]
    logp = logits.float().log_softmax(-1).gather(-1, batch['completion_ids'][...,None])[...,0]
    old,ref = [logp.detach() + .5*torch.randn(logp.shape, generator=g) for _ in range(2)]
    configure(trainer, monkeypatch, **SETTINGS[0])
    want = trainer.compute_loss(model, batch | dict(old_per_token_logps=old, ref_per_token_logps=ref))
    loss,_ = policy_loss(logp, old, group_advantages(rewards, eps=1e-4).view(-1), mask, ref, beta=.01)
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)
    params = list(model.parameters())
    for p,q in zip(torch.autograd.grad(loss, params), torch.autograd.grad(want, params)):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


# --- what is off by default -----------------------------------------------------------------------------------------

def divided(objective, b, longest):
    "Our loss under another objective; both streams are one here, as in TRL"
    over = divisors(objective, dict(textual=int(b['mask'].sum())), len(b['logp']), longest)
    weights = reply_weights(b['mask'], torch.float64) if objective=='replies' else None
    return dict(n_tokens=next(iter(over.values())), weights=weights)


@pytest.mark.parametrize('per_rollout', [False, True])
@pytest.mark.parametrize('objective,loss_type', [('tokens', 'dapo'), ('replies', 'grpo'), ('constant', 'dr_grpo')])
@pytest.mark.parametrize('setting', SETTINGS, ids=str)
def test_same_objectives_and_ratios(trainer, monkeypatch, setting, objective, loss_type, per_rollout):
    b = tensors(spread=.5)
    monkeypatch.setattr(trainer, 'importance_sampling_level', 'sequence' if per_rollout else 'token')
    want,want_grad,_ = theirs(trainer, monkeypatch, b, **setting, loss_type=loss_type)
    loss,grad,_ = ours(b, **setting, **divided(objective, b, trainer.max_completion_length), per_rollout=per_rollout)
    close(loss, want)
    close(grad, want_grad)
    for other in {'tokens', 'replies', 'constant'}-{objective}:
        assert not torch.allclose(grad, ours(b, **setting, **divided(other, b, trainer.max_completion_length), per_rollout=per_rollout)[1])
    assert not torch.allclose(grad, ours(b, **setting, **divided(objective, b, trainer.max_completion_length), per_rollout=not per_rollout)[1])


def test_same_centred_advantages(trainer, monkeypatch):
    monkeypatch.setattr(trainer, 'scale_rewards', 'none')
    rewards = torch.tensor([[2.7,1.3,0.,3.],[.1,.2,.3,4.]])
    torch.testing.assert_close(centred_advantages(rewards), generate(trainer, rewards)['advantages'].view(-1, N))


def test_same_advantages_part_by_part(trainer, monkeypatch):
    "GDPO; two reward functions, one after the other"
    parts = torch.tensor([[[2.7,1.3,0.,3.],[.1,.2,.3,4.]], [[1.,0.,0.,1.],[1.,1.,1.,1.]]])  # (K, P, N)
    weights = torch.tensor([1., .3])
    for name,value in dict(reward_funcs=trainer.reward_funcs*2, reward_func_names=['a', 'b'], reward_weights=weights,
                           reward_processing_classes=[None]*2, multi_objective_aggregation='normalize_then_sum').items():
        monkeypatch.setattr(trainer, name, value)
    want = generate(trainer, parts)['advantages'].view(-1, N)
    advantages = part_advantages(parts.permute(1, 2, 0), weights, eps=1e-4)
    torch.testing.assert_close(advantages/batch_deviation(advantages.flatten().tolist(), eps=1e-4), want)
    assert not torch.allclose(group_advantages((parts*weights[:,None,None]).sum(0), eps=1e-4), want, atol=.05)


def test_same_loss_without_truncated_replies(trainer, monkeypatch):
    monkeypatch.setattr(trainer, 'mask_truncated_completions', True)
    rewards = torch.tensor([[1.,0.,0.,2.],[2.,1.,2.,0.]])
    batch = generate(trainer, rewards)
    ended = (batch['completion_ids']==trainer.processing_class.eos_token_id).any(1)
    assert 0<ended.sum()<len(ended)
    configure(trainer, monkeypatch, **SETTINGS[0] | dict(beta=0.))
    g = torch.Generator().manual_seed(0)
    logp,old = [-torch.rand(batch['completion_ids'].shape, generator=g) for _ in range(2)]
    monkeypatch.setattr(trainer, '_get_per_token_logps_and_entropies', lambda *args, **kw: (logp, torch.zeros_like(logp), None))
    want = trainer.compute_loss(trainer.model, batch | dict(old_per_token_logps=old))
    mask = torch.ones_like(batch['completion_mask']).bool()
    for row,ids in zip(mask, batch['completion_ids'].tolist()):
        if 1 in ids: row[ids.index(1)+1:] = False
    advantages = group_advantages(rewards, eps=1e-4).view(-1)  # of all replies, also those that are masked
    torch.testing.assert_close(policy_loss(logp[ended], old[ended], advantages[ended], mask[ended])[0], want)
