"""RegionRoiAlign in ONNX: its schema, and its native, portable and plugin forms."""

import onnx_ir as ir
from onnx.defs import OpSchema

from .. import plugin_nodes
from ..schemas import FLOATS, MIXED, attribute, domain_schema
from .reference import level_thresholds
from .tensorrt_plugin import MOST_LEVELS, PLUGINS

SCHEMA = domain_schema(
    "RegionRoiAlign",
    "RoIAlign over 1..L feature levels: the levels [N, C, Hl, Wl], then rois float32 [N, P, 4] and counts int32 [N].",
    inputs=[("inputs", MIXED, "levels, rois, counts")],
    outputs=[("roi_features", FLOATS, "[N, P, C, h, w]")],
    attributes=[
        attribute("spatial_scales", OpSchema.AttrType.FLOATS),
        attribute("output_height", OpSchema.AttrType.INT),
        attribute("output_width", OpSchema.AttrType.INT),
        attribute("sampling_ratio", OpSchema.AttrType.INT),
        attribute("aligned", OpSchema.AttrType.INT),
        attribute("mode", OpSchema.AttrType.STRING),
        attribute("canonical_scale", OpSchema.AttrType.FLOAT),
        attribute("canonical_level", OpSchema.AttrType.INT),
    ],
    variadic=True,
)


def native(op, inputs, attributes):
    """By RoiAlign, each level on its own RoIs (NonZero: shapes depend on the data), then one gather back into order."""
    features, rois, counts = _split_inputs(inputs, attributes)
    height, width, ratio = (attributes[k] for k in ("output_height", "output_width", "sampling_ratio"))
    # RoiAlign's own maximum is of the four weighted corners and not of the interpolated samples. So each sample
    # becomes a bin of its own, and MaxPool takes the maximum.
    maximum = attributes["mode"] == "max"
    if maximum and ratio <= 0:
        raise ValueError(
            "the maximum of RegionRoiAlign needs a fixed sampling ratio, the model asks for an adaptive one (0): "
            "set sampling_ratio=2"
        )
    flat, real, level = _flatten(op, rois, counts, attributes)
    image = _image_of_row(op, rois)
    pooled, order = [], []
    for index, (feature, scale) in enumerate(zip(features, attributes["spatial_scales"], strict=False)):
        mine = real if level is None else op.And(real, op.Equal(level, index))
        rows = op.Squeeze(op.NonZero(mine), [0])
        part = op.RoiAlign(
            op.Cast(feature, to=1),
            op.Gather(flat, rows),
            op.Gather(image, rows),
            mode="avg",
            output_height=height * ratio if maximum else height,
            output_width=width * ratio if maximum else width,
            sampling_ratio=1 if maximum else max(ratio, 0),
            spatial_scale=float(scale),
            coordinate_transformation_mode="half_pixel" if attributes["aligned"] else "output_half_pixel",
        )
        if maximum and ratio > 1:
            part = op.MaxPool(part, kernel_shape=[ratio, ratio], strides=[ratio, ratio])
        pooled.append(part)
        order.append(rows)
    # One row of zeros at the end serves every RoI beyond its image's count.
    shape = op.Concat([1], op.Shape(pooled[0], start=1), axis=0)
    stacked = op.Concat(*pooled, op.Expand(0.0, shape), axis=0)
    order = op.Concat(*order, axis=0)
    found = op.Shape(order)
    start = op.Expand(found, op.Shape(real))
    position = op.ScatterElements(start, order, op.Range(0, op.Squeeze(found), 1), axis=0)
    return [_unflatten(op, op.Gather(stacked, position), rois, features[0], attributes)]


def portable(op, inputs, attributes):
    """By gathers on all levels laid end to end, [N · sum(Hl · Wl), C]: four corners for each sample of a bin."""
    features, rois, counts = _split_inputs(inputs, attributes)
    ratio, height, width = (attributes[k] for k in ("sampling_ratio", "output_height", "output_width"))
    if ratio <= 0:
        raise ValueError(
            "the portable form of RegionRoiAlign needs a fixed sampling ratio, the model asks for an adaptive one (0): "
            "set sampling_ratio=2 in its MultiScaleRoIAlign, or use the native form"
        )
    flat, real, level = _flatten(op, rois, counts, attributes)
    flat = op.Where(op.Unsqueeze(real, [1]), flat, 0.0)  # whatever stands beyond the count: NaN is no index of a cell
    cells = [_cells(op, f) for f in features]  # each [N, Hl·Wl, C]
    cells = cells[0] if len(cells) == 1 else op.Concat(*cells, axis=1)
    stride = op.Shape(cells, start=1, end=2)  # cells of one image
    channels = op.Shape(cells, start=2, end=3)
    cells = op.Reshape(cells, op.Concat([-1], channels, axis=0))

    def per_roi(values):
        """One entry of `values` (one a level) for each RoI: [R, 1]."""
        if level is None:
            return values
        return op.Unsqueeze(op.Gather(values, level), [1])

    # Through float and back: TensorRT for RTX 1.7 fails on sizes that are read from a dynamic shape after a Loop.
    map_h, map_w = (
        op.Cast(op.Cast(op.Concat(*[op.Shape(f, start=d, end=d + 1) for f in features], axis=0), to=1), to=7)
        for d in (2, 3)
    )
    offset = op.CumSum(op.Mul(map_h, map_w), op.Constant(value_int=0), exclusive=1)
    map_h, map_w, offset = per_roi(map_h), per_roi(map_w), per_roi(offset)
    scale = per_roi(op.Constant(value_floats=[float(s) for s in attributes["spatial_scales"][: len(features)]]))
    base = op.Add(op.Mul(op.Unsqueeze(_image_of_row(op, rois), [1]), stride), offset)  # [R, 1]

    x1, y1, x2, y2 = op.Split(op.Mul(flat, scale), axis=1, num_outputs=4, _outputs=4)  # [R, 1]

    def axis(low, high, bins, size, sample):
        """Cell indices and weights along one axis, for sample `sample` of each bin: [R, bins] each."""
        if attributes["aligned"]:
            low, high = op.Sub(low, 0.5), op.Sub(high, 0.5)
        length = op.Sub(high, low)
        if not attributes["aligned"]:
            length = op.Max(length, 1.0)
        steps = [i + (sample + 0.5) / ratio for i in range(bins)]
        at = op.Add(low, op.Mul(op.Div(length, float(bins)), op.Constant(value_floats=steps)))
        size = op.Cast(size, to=1)
        inside = op.Cast(op.And(op.GreaterOrEqual(at, -1.0), op.LessOrEqual(at, size)), to=1)
        last = op.Sub(size, 1.0)
        at = op.Min(op.Max(at, 0.0), last)
        below = op.Floor(at)
        above = op.Min(op.Add(below, 1.0), last)
        part = op.Sub(at, below)
        return [
            (op.Cast(below, to=7), op.Mul(op.Sub(1.0, part), inside)),
            (op.Cast(above, to=7), op.Mul(part, inside)),
        ]

    ys = [axis(y1, y2, height, map_h, s) for s in range(ratio)]
    xs = [axis(x1, x2, width, map_w, s) for s in range(ratio)]
    result = None
    for corners_y in ys:
        rows = [
            (op.Unsqueeze(op.Add(op.Mul(y, map_w), base), [2]), op.Unsqueeze(weight, [2, 3])) for y, weight in corners_y
        ]
        for corners_x in xs:
            sample = None
            for row, weight_y in rows:
                for x, weight_x in corners_x:
                    index = op.Add(row, op.Unsqueeze(x, [1]))  # [R, h, w]
                    value = op.Cast(op.Gather(cells, index), to=1)  # [R, h, w, C]
                    value = op.Mul(value, op.Mul(weight_y, op.Unsqueeze(weight_x, [1, 3])))
                    sample = value if sample is None else op.Add(sample, value)
            if result is None:
                result = sample
            else:
                result = op.Add(result, sample) if attributes["mode"] == "avg" else op.Max(result, sample)
    if attributes["mode"] == "avg":
        result = op.Mul(result, 1.0 / ratio**2)
    result = op.Where(op.Reshape(real, [-1, 1, 1, 1]), result, 0.0)
    return [_unflatten(op, op.Transpose(result, perm=[0, 3, 1, 2]), rois, features[0], attributes)]


def plugin(op, inputs, attributes):
    """By one node for TensorRT, which launches our kernel: all levels at once."""
    features, rois, counts = _split_inputs(inputs, attributes)
    if len(features) > MOST_LEVELS:
        raise ValueError(
            f"the plugin form of RegionRoiAlign takes at most {MOST_LEVELS} feature levels, the model has "
            f"{len(features)}: use the native form"
        )
    fields = {name: attributes[name] for name in ("output_height", "output_width", "sampling_ratio", "aligned")}
    fields["spatial_scales"] = list(attributes["spatial_scales"][: len(features)])
    fields["level_areas"] = [0.0, *_thresholds(attributes)]
    fields["maximum"] = int(attributes["mode"] == "max")
    pooled = plugin_nodes.emit(op, PLUGINS[len(features) - 1], [*features, rois, counts], fields)  # [N·P, C, h, w]
    size = [fields["output_height"], fields["output_width"]]
    shape = op.Concat(op.Shape(rois, start=0, end=2), op.Shape(features[0], start=1, end=2), size, axis=0)
    return [op.Reshape(pooled, shape)]


FORMS = {"native": native, "portable": portable, "plugin": plugin}


def _thresholds(attributes):
    return level_thresholds(attributes["spatial_scales"], attributes["canonical_scale"], attributes["canonical_level"])


def _split_inputs(inputs, attributes):
    """The levels that RoIs can be read from, rois, counts."""
    *features, rois, counts = inputs
    return features[: len(_thresholds(attributes)) + 1], rois, counts


def _flatten(op, rois, counts, attributes):
    """RoIs [R, 4] with R = N·P, whether each is real bool [R], its level int64 [R] (None where there is one level)."""
    position = op.Range(0, op.Squeeze(op.Shape(rois, start=1, end=2)), 1)
    real = op.Less(op.Cast(op.Unsqueeze(position, [0]), to=6), op.Unsqueeze(counts, [1]))  # [N, P]
    flat = op.Reshape(rois, [-1, 4])
    thresholds = _thresholds(attributes)
    level = None
    if thresholds:
        x1, y1, x2, y2 = op.Split(flat, axis=1, num_outputs=4, _outputs=4)
        area = op.Mul(op.Sub(x2, x1), op.Sub(y2, y1))  # [R, 1]
        passed = op.GreaterOrEqual(area, op.Constant(value_floats=thresholds))
        level = op.ReduceSum(op.Cast(passed, to=7), [1], keepdims=0)
    return flat, op.Reshape(real, [-1]), level


def _image_of_row(op, rois):
    """int64 [N·P]: the image of each row of the flattened RoIs."""
    image = op.Range(0, op.Squeeze(op.Shape(rois, start=0, end=1)), 1)
    return op.Reshape(op.Expand(op.Unsqueeze(image, [1]), op.Shape(rois, start=0, end=2)), [-1])


def _cells(op, feature):
    """[N, C, H, W] -> [N, H·W, C]."""
    shape = op.Concat([0, -1], op.Shape(feature, start=1, end=2), axis=0)
    return op.Reshape(op.Transpose(feature, perm=[0, 2, 3, 1]), shape)


def _unflatten(op, pooled, rois, feature, attributes):
    """[N·P, C, h, w] -> [N, P, C, h, w] in the feature's type."""
    shape = op.Concat(op.Shape(rois, start=0, end=2), op.Shape(pooled, start=1), axis=0)
    out = op.Reshape(pooled, shape)
    return out if feature.dtype in (None, ir.DataType.FLOAT) else op.CastLike(out, feature)
