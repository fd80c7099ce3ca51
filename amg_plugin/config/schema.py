"""Every configuration key with its default and its meaning.

Names and defaults of all nodes but ``amg`` are torchreid's own, so its configuration files and habits carry
over. The node ``amg`` belongs to this plugin. The type of a default is the type that a value must have.
"""

from __future__ import annotations

from yacs.config import CfgNode

#: Keys of one entry of ``amg.schedule``; ``None`` marks a key without default, which every stage has to give.
STAGE_DEFAULTS: dict[str, object] = {
    "target": None,  # what the stage removes: 'heads' or 'tokens'
    "rate": None,  # share removed, relative to the dense model; rates of one target add up over the stages; left out
    # where amg.target_macs_saving decides
    "iterations": 1,  # rounds of score -> cut -> fine-tune that share the rate
    "epochs": 0,  # epochs of fine-tuning after each cut
}

#: The stages where ``amg.target_macs_saving`` is given and ``amg.schedule`` is empty: many small cuts of heads.
DEFAULT_STAGES: tuple[dict[str, object], ...] = (
    {"target": "heads", "iterations": 6, "epochs": 1},
    {"target": "tokens", "iterations": 1, "epochs": 0},
)

#: Element types of the list keys whose default is empty.
EMPTY_LIST_ELEMENTS: dict[str, type] = {"amg.image_size": int, "amg.schedule": dict}


def get_default_config() -> CfgNode:
    """Return a new, unfrozen configuration that holds every key with its default.

    Returns:
        torchreid's nodes, ``use_gpu`` and the node ``amg``.
    """
    cfg = CfgNode()
    cfg.use_gpu = True  # use a GPU where there is one; False forces the CPU
    _add_torchreid_model_and_data(cfg)
    _add_torchreid_training(cfg)
    _add_torchreid_loss_and_test(cfg)
    cfg.amg = _amg_node()
    return cfg


def _add_torchreid_model_and_data(cfg: CfgNode) -> None:
    cfg.model = CfgNode()
    cfg.model.name = "resnet50"  # name in torchreid's model factory; vit_amg, vit_amg_small, vit_amg_tiny are ours
    cfg.model.pretrained = True  # start from published ImageNet weights (may need the network)
    cfg.model.load_weights = ""  # torchreid: file of weights to start from
    cfg.model.resume = ""  # torchreid: checkpoint of an interrupted training

    cfg.data = CfgNode()
    cfg.data.type = "image"  # 'image' only: video engines are out of scope of the plugin
    cfg.data.root = "reid-data"  # folder that holds the data set folders
    cfg.data.sources = ["market1501"]  # data sets to train on
    cfg.data.targets = ["market1501"]  # data sets to evaluate on; the first one decides which model is best
    cfg.data.workers = 4  # loader processes
    cfg.data.split_id = 0  # which split, for data sets that have several
    cfg.data.height = 256  # image height in pixels
    cfg.data.width = 128  # image width in pixels
    cfg.data.combineall = False  # train on training, query and gallery images together
    cfg.data.transforms = ["random_flip"]  # named training augmentations
    cfg.data.k_tfm = 1  # augmented copies made of each training image
    cfg.data.norm_mean = [0.485, 0.456, 0.406]  # channel means (ImageNet)
    cfg.data.norm_std = [0.229, 0.224, 0.225]  # channel standard deviations (ImageNet)
    cfg.data.save_dir = "log"  # folder for checkpoints, curves and result.json
    cfg.data.load_train_targets = False  # also load the targets' training sets

    cfg.market1501 = CfgNode()
    cfg.market1501.use_500k_distractors = False  # put the 500k distractors into the gallery

    cfg.cuhk03 = CfgNode()
    cfg.cuhk03.labeled_images = False  # hand-drawn boxes instead of detected ones
    cfg.cuhk03.classic_split = False  # the split of the first publication instead of the new protocol
    cfg.cuhk03.use_metric_cuhk03 = False  # single-gallery-shot evaluation

    cfg.sampler = CfgNode()
    cfg.sampler.train_sampler = "RandomSampler"  # order of the source images
    cfg.sampler.train_sampler_t = "RandomSampler"  # order of the targets' training images
    cfg.sampler.num_instances = 4  # images per identity in a batch (RandomIdentitySampler)
    cfg.sampler.num_cams = 1  # cameras per batch, 0 = all (RandomDomainSampler)
    cfg.sampler.num_datasets = 1  # data sets per batch, 0 = all (RandomDatasetSampler)

    cfg.video = CfgNode()  # kept so that torchreid's files load; not used
    cfg.video.seq_len = 15  # images taken from a tracklet
    cfg.video.sample_method = "evenly"  # how they are chosen
    cfg.video.pooling_method = "avg"  # how their features are joined


def _add_torchreid_training(cfg: CfgNode) -> None:
    cfg.train = CfgNode()
    cfg.train.optim = "adam"  # 'adam', 'amsgrad', 'sgd', 'rmsprop' or 'radam'
    cfg.train.lr = 0.0003  # learning rate of the new layers (of all layers without staged_lr)
    cfg.train.weight_decay = 5e-4  # weight decay
    cfg.train.max_epoch = 60  # epochs of dense training; pruning takes its epochs from amg.schedule
    cfg.train.start_epoch = 0  # first epoch, counted from 0
    cfg.train.batch_size = 32  # images per training batch
    cfg.train.fixbase_epoch = 0  # epochs at the start in which only open_layers are trained
    cfg.train.open_layers = ["classifier"]  # attributes of the model trained in those epochs
    cfg.train.staged_lr = False  # give the layers outside new_layers a smaller learning rate
    cfg.train.new_layers = ["classifier"]  # attributes of the model trained at the full rate
    cfg.train.base_lr_mult = 0.1  # factor of the learning rate of the other layers
    cfg.train.lr_scheduler = "single_step"  # 'single_step', 'multi_step' or 'cosine'
    cfg.train.stepsize = [20]  # epochs between drops (single_step: last entry) or epochs of the drops
    cfg.train.gamma = 0.1  # factor of each drop
    cfg.train.print_freq = 20  # batches between two progress lines
    cfg.train.seed = 1  # seed of all random numbers

    cfg.sgd = CfgNode()
    cfg.sgd.momentum = 0.9  # momentum of SGD and RMSprop
    cfg.sgd.dampening = 0.0  # dampening of the momentum
    cfg.sgd.nesterov = False  # Nesterov momentum

    cfg.rmsprop = CfgNode()
    cfg.rmsprop.alpha = 0.99  # smoothing of the squared gradient

    cfg.adam = CfgNode()
    cfg.adam.beta1 = 0.9  # decay of the first moment (Adam and its relatives)
    cfg.adam.beta2 = 0.999  # decay of the second moment


def _add_torchreid_loss_and_test(cfg: CfgNode) -> None:
    cfg.loss = CfgNode()
    cfg.loss.name = "softmax"  # 'softmax' (identity cross entropy) or 'triplet' (with the triplet loss)
    cfg.loss.softmax = CfgNode()
    cfg.loss.softmax.label_smooth = True  # smooth the labels of the cross entropy
    cfg.loss.triplet = CfgNode()
    cfg.loss.triplet.margin = 0.3  # distance margin; not used with amg.soft_margin
    cfg.loss.triplet.weight_t = 1.0  # weight of the triplet loss
    cfg.loss.triplet.weight_x = 0.0  # weight of the cross entropy beside it

    cfg.test = CfgNode()
    cfg.test.batch_size = 100  # images per evaluation batch
    cfg.test.dist_metric = "euclidean"  # 'euclidean' or 'cosine'
    cfg.test.normalize_feature = False  # L2-normalise features before distances
    cfg.test.ranks = [1, 5, 10, 20]  # CMC ranks to report; clamped to the gallery
    cfg.test.evaluate = False  # torchreid: only evaluate
    cfg.test.eval_freq = -1  # epochs between evaluations; -1: only at the end
    cfg.test.start_eval = 0  # first epoch with an evaluation
    cfg.test.rerank = False  # k-reciprocal re-ranking
    cfg.test.visrank = False  # save pictures of ranked galleries (with test.evaluate)
    cfg.test.visrank_topk = 10  # gallery images per picture


def _amg_node() -> CfgNode:
    amg = CfgNode()

    # Network
    amg.arch = ""  # timm name of a plain ViT; empty = that of model.name (vit_amg: ViT-B/16, _small: S, _tiny: Ti)
    amg.stride = 0  # step between patches in pixels, at most the patch size; 0 = the patch size
    amg.image_size = []  # [height, width] in pixels; empty = data.height, data.width
    amg.override = CfgNode()  # departures from the architecture, for small networks trained from scratch
    amg.override.embed_dim = 0  # embedding width; 0 = the architecture's own
    amg.override.depth = 0  # blocks; 0 = the architecture's own
    amg.override.num_heads = 0  # heads per block; 0 = the architecture's own
    amg.override.patch_size = 0  # patch side in pixels; 0 = the architecture's own
    amg.override.mlp_ratio = 0.0  # MLP hidden width / embedding width; 0 = the architecture's own
    amg.override.qkv_bias = True  # False: queries, keys and values without bias
    amg.override.attention_scale = 0.0  # factor of query times key; 0 = the architecture's own
    amg.drop_path = 0.0  # stochastic depth rate of the last block
    amg.weights = ""  # local .pth or .safetensors file of backbone weights
    amg.neck_feat = "after"  # evaluation feature 'before' or 'after' the batch-norm neck
    amg.head = "bnneck"  # 'bnneck' (batch-norm neck and one classifier) or 'parts' (LA-Transformer)
    amg.parts = CfgNode()  # the head 'parts'
    amg.parts.number = 14  # groups of patch tokens, one classifier each
    amg.parts.hidden = 256  # hidden width of a part classifier
    amg.parts.dropout = 0.5  # dropout rate of a part classifier
    amg.sie = CfgNode()  # side information embedding (TransReID)
    amg.sie.enabled = False  # add a learned vector per camera (and view) to every token
    amg.sie.cameras = -1  # training cameras; -1 = as many as the training data has, 0 = cameras do not count
    amg.sie.views = 0  # views of the training data; 0 = views do not count
    amg.sie.coefficient = 3.0  # factor of the vector
    amg.sie.unseen = "none"  # for cameras and views that training has not seen: 'none' (nothing) or 'mean'
    amg.jpm = CfgNode()  # jigsaw patch module (TransReID)
    amg.jpm.enabled = False  # a second copy of the last block over shuffled groups of patches
    amg.jpm.parts = 4  # groups, one local feature each
    amg.jpm.shift = 5  # the patches are rolled by shift - 1 places
    amg.jpm.groups = 2  # piles that they are dealt out over

    # Training
    amg.engine = ""  # name in the engine registry; empty = amg_<loss.name>
    amg.precision = "fp32"  # 'fp32' or 'bf16' (autocast in training; evaluation stays fp32)
    amg.warmup_epochs = 0  # epochs of dense training over which the learning rate rises linearly
    amg.warmup_start = 0.01  # where it starts, as a share of the learning rate
    amg.min_lr_factor = 0.0  # where the schedule 'cosine' ends, as a share of the learning rate
    amg.bias_lr_factor = 1.0  # factor of the learning rate of biases
    amg.unfreeze = CfgNode()  # gradual unfreezing in dense training (LA-Transformer)
    amg.unfreeze.every = 0  # epochs after which one more block is trained, from the top; 0 = all from the start
    amg.soft_margin = False  # triplet loss log(1 + exp(d_pos - d_neg)) instead of a fixed margin
    amg.batches_per_epoch = 0  # end each epoch of training after so many batches, for trials; 0 = all
    amg.check_images = True  # open every image before training and name the unreadable ones
    amg.skip_unreadable = False  # leave out unreadable images and queries without a match, in place of stopping

    # Occlusion of training images, with the transform random_occlusion
    amg.occlusion = CfgNode()
    amg.occlusion.probability = 0.5  # share of the training images that get an object in front of the person
    amg.occlusion.min_coverage = 0.15  # smallest hidden share of such an image
    amg.occlusion.max_coverage = 0.6  # largest; between the two the share follows a Beta(2, 3) distribution

    # Pruning
    amg.token_variant = "block"  # a removed token skips the whole block ('block') or only its key and value ('kv')
    amg.head_scorer = "amg"  # 'amg' (entropy), or for comparison 'random' or 'magnitude'
    amg.token_scorer = "amg"  # 'amg' (attention x gradient), or for comparison 'random' or 'cls_attention'
    amg.layer_growth = 0.005  # weight of later blocks when heads are compared over blocks, per block
    amg.layer_decay = 0.015  # weight lost by later blocks when tokens are compared over blocks, per block
    amg.normalize_entropy = False  # divide head entropies by log2 of the keys of their block
    amg.min_heads_per_block = 1  # heads that every block keeps
    amg.min_tokens_per_block = 1  # patch tokens that every block keeps
    amg.round_tokens_to = 1  # kept and prefix tokens of a pruned block are a multiple of it
    amg.schedule = []  # stages {target, rate, iterations, epochs}, in order; see STAGE_DEFAULTS
    amg.final_epochs = 0  # epochs of fine-tuning after the last stage
    amg.reducer = "amg"  # 'amg' (pruning), for comparison 'tome' or 'evit' (tokens merged or dropped per image), 'none'
    amg.target_macs_saving = 0.0  # share of the dense model's MACs to save, instead of rates; 0 = rates count
    amg.target_latency_saving = 0.0  # share of the dense model's latency to save; measured first
    amg.latency = CfgNode()
    amg.latency.form = "fast"  # what is timed, out of the forms of amg-reid bench
    amg.latency.device = "cpu"  # 'cpu' or 'cuda'
    amg.latency.threads = 1  # CPU threads
    amg.latency.batch = 1  # images per pass
    amg.latency.rounds = 20  # samples of each network
    amg.head_token_balance = 0.3  # with a target: share of the saving that comes from heads, 0 to 1

    # Scoring
    amg.calibration = CfgNode()
    amg.calibration.batches = 0  # batches that are scored; 0 = one pass over the training loader
    amg.calibration.mode = "eval"  # mode of the network while scoring: 'eval' or 'train'
    amg.calibration.augment = False  # score augmented training images instead of plain ones

    # Distillation
    amg.distill = CfgNode()
    amg.distill.enabled = True  # fine-tune towards the logits of the frozen dense model
    amg.distill.alpha = 2.0  # weight of the distillation loss
    amg.distill.tau = 10.0  # softmax temperature of the distillation loss
    amg.distill.features = 0.0  # weight of the distance between student's and teacher's evaluation features; 0 = none
    amg.distill.teacher = ""  # dense checkpoint to learn from; empty = the model that the run starts with
    return amg
