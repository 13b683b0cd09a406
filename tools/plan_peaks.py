"""Write nbs/results/plan.jsonl: planned and measured peaks of small models with random weights, on a CPU.

    python tools/plan_peaks.py            # all settings, some minutes
    python tools/plan_peaks.py --only 4 bits
"""
import argparse
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from ivgr.core import write_jsonl
from ivgr.tools.plan import Planner
from ivgr.tools.plan_check import measure
from ivgr.tools.probe import Workload, parts

ROOT = Path(__file__).resolve().parent.parent
TEXT = dict(vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8)
TOWER = dict(depth=6, hidden_size=256, num_heads=4, out_hidden_size=512)
TOKENS = dict(image_token_id=8190, video_token_id=8191, vision_start_token_id=1, vision_end_token_id=1)
ROPE = dict(rope_type='default', rope_theta=1e6, mrope_section=[12, 10, 10])
QWEN3_TEXT = dict(TEXT, num_key_value_heads=4, head_dim=64, rope_parameters=dict(ROPE, mrope_interleaved=True))
QWEN3_TOWER = dict(TOWER, intermediate_size=1024, patch_size=16, deepstack_visual_indexes=[1, 2, 3])
QWEN25_TEXT = dict(TEXT, num_key_value_heads=2, rope_parameters=ROPE)
QWEN25_TOWER = dict(TOWER, intermediate_size=684, patch_size=14, fullatt_block_indexes=[2, 5])
MODELS = dict(
    qwen3_vl=Qwen3VLConfig(text_config=QWEN3_TEXT, vision_config=QWEN3_TOWER, **TOKENS),
    qwen2_5_vl=Qwen2_5_VLConfig(
        text_config=QWEN25_TEXT, vision_config=QWEN25_TOWER, tie_word_embeddings=True, **TOKENS))

FULL = Workload(image_pixels=60_000, n_rollouts=2, max_new_tokens=24, question=20, instruction=20, dtype='float32',
                gradient_checkpointing=False, lora_rank=0)
LORA = replace(FULL, lora_rank=16, gradient_checkpointing=True)
TWO_QUERIES = dict(per_device_train_batch_size=2)
SETTINGS = {
    'all weights': FULL,
    'all weights, checkpointing': replace(FULL, gradient_checkpointing=True),
    'all weights, unshared': replace(FULL, share_prefix=False),
    'all weights, 2 queries in 2 forwards': replace(FULL, **TWO_QUERIES),
    'LoRA': replace(LORA, gradient_checkpointing=False),
    'LoRA, checkpointing': LORA,
    'LoRA, checkpointing, unshared': replace(LORA, share_prefix=False),
    'LoRA, checkpointing, 2 queries in a forward, top_p .9':
        replace(LORA, tokens_per_forward=1000, top_p=.9, **TWO_QUERIES),
    'LoRA in the tower too, checkpointing, 200 thousand pixels':
        replace(LORA, lora_vision=True, image_pixels=200_000),
    'LoRA, checkpointing, 10 thousand pixels, n 4, length 80':
        replace(LORA, image_pixels=10_000, n_rollouts=4, max_new_tokens=80),
    'LoRA, checkpointing, 400 thousand pixels, length 8':
        replace(LORA, image_pixels=400_000, max_new_tokens=8),
    'LoRA, checkpointing, one stream, n 6': replace(LORA, n_streams=1, n_rollouts=6),
    'LoRA, checkpointing, 4 bits': replace(LORA, quantise=4),
    'LoRA, checkpointing, 8 bits': replace(LORA, quantise=8),
    'LoRA, checkpointing, bfloat16': replace(LORA, dtype='bfloat16'),
    'LoRA, checkpointing, 4 bits, bfloat16': replace(LORA, quantise=4, dtype='bfloat16')}


def compare(planner, load):
    "Planned and measured bytes of each phase, above what is always there"
    always = planner.always(load)
    measured = measure(planner.config, load)
    held = sum(always.values())
    planned = {phase: sum(sizes.values()) - held for phase, sizes in planner.phases(load).items()}
    return dict(
        planned=planned,
        measured={phase: measured[phase].bytes for phase in planned},
        weights=always['weights'] + always['adapters'],
        measured_weights=measured['always'].bytes)


def show(row):
    "One line of what was found"
    cells = [f"weights {row['weights']/row['measured_weights']:.3f}"]
    for phase, planned in row['planned'].items():
        measured = row['measured'][phase]
        cells.append(f'{phase} {planned/1e6:.1f} / {measured/1e6:.1f} = {planned/measured:.2f}')
    print(row['family'], row['name'], *cells, sep='  ', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='*', metavar='WORD',
                        help='only settings whose names hold these words; nothing is written')
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = ' '.join(args.only or [])
    rows = []
    for family, config in MODELS.items():
        planner = Planner(config)
        for name, load in SETTINGS.items():
            if wanted not in name:
                continue
            row = dict(family=family, parameters=sum(parts(planner.model)), name=name)
            row |= compare(planner, load)
            rows.append(row)
            show(row)
    if not args.only:
        write_jsonl(ROOT/'nbs/results/plan.jsonl', rows)


if __name__ == '__main__':
    main()
