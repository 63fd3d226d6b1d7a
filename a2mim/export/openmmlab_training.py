"""The configurations that train a segmenter (mmseg) and a detector (mmdet) on an exported encoder, written out.

Each is a template of ours that only numbers fill. Rates follow the libraries' own recipes for Swin: UPerNet on ADE20K
for 160,000 steps, Mask R-CNN on COCO for 12 epochs.
"""

from a2mim.export.target import Neck

FILES = {"mmseg": "segmenter.py", "mmdet": "detector.py"}
SEGMENTER = '''\
"""UPerNet on an encoder that a2mim exported, for ADE20K in data/ade: `mim train mmsegmentation segmenter.py`."""

_base_ = ["encoder.py"]
{imports}
default_scope = "mmseg"
crop_size = ({crop}, {crop})
norm_cfg = dict(type="BN", requires_grad=True)  # "SyncBN" on several GPUs
loss = dict(type="CrossEntropyLoss", use_sigmoid=False)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(size=crop_size, pad_val=0, seg_pad_val=255),
    {neck}decode_head=dict(
        type="UPerHead",
        in_channels={channels},
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(**loss, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels={auxiliary},
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(**loss, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=({stride}, {stride})),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomResize", scale=({longest}, {crop}), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=({longest}, {crop}), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
dataset = dict(type="ADE20KDataset", data_root="data/ade/ADEChallengeData2016")
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),  # for 16 images a step
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={{"pos_embed": dict(decay_mult=0.0)}}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=16000))
log_processor = dict(by_epoch=False)
'''
DETECTOR = '''\
"""Mask R-CNN on an encoder that a2mim exported, for COCO in data/coco: `mim train mmdet detector.py`."""

_base_ = ["encoder.py"]
{imports}
default_scope = "mmdet"
norm_cfg = dict(type="BN", requires_grad=True)  # "SyncBN" on several GPUs
sigmoid = dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0)
softmax = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
strides = [4, 8, 16, 32]
model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(pad_mask=True, pad_size_divisor=32),
    neck=[
        {neck}dict(type="FPN", in_channels={channels}, out_channels=256, num_outs=5),
    ],
    rpn_head=dict(
        type="RPNHead",
        in_channels=256,
        feat_channels=256,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[*strides, 64]
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=sigmoid,
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=strides,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=256,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=80,
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
            ),
            reg_class_agnostic=False,
            loss_cls=softmax,
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=strides,
        ),
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=80,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(
                type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False
            ),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0
        ),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(
                type="RandomSampler", num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True
            ),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5
        ),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
dataset = dict(type="CocoDataset", data_root="data/coco/")
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        **dataset,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric", ann_file="data/coco/annotations/instances_val2017.json", metric=["bbox", "segm"]
)
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),  # for 16 images a step
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={{"pos_embed": dict(decay_mult=0.0)}}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1))
'''


def training_config(library: str, neck: Neck, imports: list[str]) -> str:
    """The whole file FILES[library].

    Args:
        imports: modules that the configuration needs beyond the library itself.
    """
    pyramid = ""
    if neck.rescales:
        scope = "" if library == "mmseg" else "mmseg."
        if scope:
            imports = [*imports, "mmseg.models"]
        pyramid = (
            f'dict(type="{scope}Feature2Pyramid", embed_dim={neck.channels[0]}, rescales={list(neck.rescales)},'
            " norm_cfg=norm_cfg),\n"
        )
        pyramid = (f"neck={pyramid}" if library == "mmseg" else pyramid) + " " * (4 if library == "mmseg" else 8)
    custom = f"\ncustom_imports = dict(imports={imports!r}, allow_failed_imports=False)" if imports else ""
    template = SEGMENTER if library == "mmseg" else DETECTOR
    return template.format(
        imports=custom,
        neck=pyramid,
        channels=list(neck.channels),
        auxiliary=neck.channels[2],
        crop=neck.crop,
        stride=neck.crop * 2 // 3,
        longest=4 * neck.crop,
    )
