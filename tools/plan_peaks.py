"""Write nbs/results/plan.jsonl: planned and measured peaks of small models with random weights, on a CPU.

    python tools/plan_peaks.py            # all settings, some minutes
    python tools/plan_peaks.py --only 4 bits
"""
import argparse,json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig,Qwen3VLConfig
from ivgr.core import write_atomic
from ivgr.tools.plan import Planner, Workload, measure, parts

ROOT = Path(__file__).resolve().parent.parent
TEXT = dict(vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8)
EYES = dict(depth=6, hidden_size=256, num_heads=4, out_hidden_size=512)
TOKENS = dict(image_token_id=8190, video_token_id=8191, vision_start_token_id=1, vision_end_token_id=1)
def rope(**kw): return dict(rope_type='default', rope_theta=1e6, mrope_section=[12, 10, 10], **kw)
MODELS = dict(
    qwen3_vl=Qwen3VLConfig(text_config=TEXT|dict(num_key_value_heads=4, head_dim=64, rope_parameters=rope(mrope_interleaved=True)),
                           vision_config=EYES|dict(intermediate_size=1024, patch_size=16, deepstack_visual_indexes=[1, 2, 3]), **TOKENS),
    qwen2_5_vl=Qwen2_5_VLConfig(text_config=TEXT|dict(num_key_value_heads=2, rope_parameters=rope()), tie_word_embeddings=True,
                                vision_config=EYES|dict(intermediate_size=684, patch_size=14, fullatt_block_indexes=[2, 5]), **TOKENS))

FULL = Workload(image_pixels=60_000, n_rollouts=2, max_new_tokens=24, question=20, instruction=20, dtype='float32', gradient_checkpointing=False, lora_rank=0)
LORA = replace(FULL, lora_rank=16, gradient_checkpointing=True)
SETTINGS = {
    'all weights':FULL,
    'all weights, checkpointing':replace(FULL, gradient_checkpointing=True),
    'all weights, plain path':replace(FULL, share_prefix=False),
    'all weights, 2 queries in 2 forwards':replace(FULL, per_device_train_batch_size=2),
    'LoRA':replace(LORA, gradient_checkpointing=False),
    'LoRA, checkpointing':LORA,
    'LoRA, checkpointing, plain path':replace(LORA, share_prefix=False),
    'LoRA, checkpointing, 2 queries in a forward, top_p .9':replace(LORA, per_device_train_batch_size=2, tokens_per_forward=1000, top_p=.9),
    'LoRA in the tower too, checkpointing, 200 thousand pixels':replace(LORA, lora_vision=True, image_pixels=200_000),
    'LoRA, checkpointing, 10 thousand pixels, n 4, length 80':replace(LORA, image_pixels=10_000, n_rollouts=4, max_new_tokens=80),
    'LoRA, checkpointing, 400 thousand pixels, length 8':replace(LORA, image_pixels=400_000, max_new_tokens=8),
    'LoRA, checkpointing, one stream, n 6':replace(LORA, n_streams=1, n_rollouts=6),
    'LoRA, checkpointing, 4 bits':replace(LORA, quantise=4),
    'LoRA, checkpointing, 8 bits':replace(LORA, quantise=8),
    'LoRA, checkpointing, bfloat16':replace(LORA, dtype='bfloat16'),
    'LoRA, checkpointing, 4 bits, bfloat16':replace(LORA, quantise=4, dtype='bfloat16')}

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', nargs='*', metavar='WORD', help='only settings whose names hold these words; nothing is written')
    a = ap.parse_args()
    torch.set_num_threads(1)
    rows = []
    for family,config in MODELS.items():
        planner = Planner(config)
        for name,s in SETTINGS.items():
            if a.only and ' '.join(a.only) not in name: continue
            held,real = planner.always(s),measure(config, s)
            planned = {k:sum(v.values())-sum(held.values()) for k,v in planner.phases(s).items()}
            rows.append(dict(family=family, parameters=sum(parts(planner.model)), name=name, planned=planned, measured={k:real[k][0] for k in planned},
                             weights=held['weights']+held['adapters'], measured_weights=real['always'][0]))
            print(family, name, f"weights {rows[-1]['weights']/real['always'][0]:.3f}", {k:f"{v/1e6:.1f} / {real[k][0]/1e6:.1f} = {v/real[k][0]:.2f}" for k,v in planned.items()}, flush=True)
    if not a.only: write_atomic(ROOT/'nbs/results/plan.jsonl', ''.join(json.dumps(r)+'\n' for r in rows))

if __name__=='__main__': main()
