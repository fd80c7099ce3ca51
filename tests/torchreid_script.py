"""A training script as torchreid users have them: it knows nothing of the plugin.

It makes the calls of torchreid's own script, in the same order. The launcher's tests run it; its neighbour is imported
as torchreid's script imports `default_config`.
"""

import argparse
import json
from pathlib import Path

import torch
import torchreid
from neighbour import LEARNING_RATE
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("-s", "--source", required=True)
    parser.add_argument("--save-dir", required=True)
    parser.add_argument("--loss", choices=["softmax", "triplet"], required=True)
    parser.add_argument("--model", default="vit_amg_tiny")
    parser.add_argument("--height", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(1)

    datamanager = torchreid.data.ImageDataManager(
        root=args.root,
        sources=[args.source],
        targets=[args.source],
        height=args.height,
        width=args.width,
        transforms=["random_flip"],
        batch_size_train=8,
        batch_size_test=16,
        workers=0,
        num_instances=4,
        train_sampler="RandomIdentitySampler" if args.loss == "triplet" else "RandomSampler",
        use_gpu=False,
    )
    model = torchreid.models.build_model(
        name=args.model,
        num_classes=datamanager.num_train_pids,
        loss=args.loss,
        pretrained=False,
        use_gpu=False,
    )
    num_params, flops = torchreid.utils.compute_model_complexity(model, (1, 3, args.height, args.width))
    model = nn.DataParallel(model)
    optimizer = torchreid.optim.build_optimizer(model, optim="adam", lr=LEARNING_RATE)
    scheduler = torchreid.optim.build_lr_scheduler(optimizer, lr_scheduler="single_step", stepsize=1)
    engine_class = {
        "softmax": torchreid.engine.ImageSoftmaxEngine,
        "triplet": torchreid.engine.ImageTripletEngine,
    }[args.loss]
    engine = engine_class(datamanager, model, optimizer, scheduler=scheduler, use_gpu=False, label_smooth=True)
    engine.run(
        save_dir=args.save_dir,
        max_epoch=2,
        fixbase_epoch=1,
        open_layers=["classifier"],
        print_freq=1,
        ranks=[1, 5],
    )
    rank1 = engine.test(dist_metric="euclidean", save_dir=args.save_dir, ranks=[1, 5])
    facts = {
        "params": num_params,
        "flops": flops,
        "rank1": float(rank1),
        "depth": len(model.module.backbone.blocks),
        "wrapped": type(model).__name__,
    }
    Path(args.save_dir, "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
