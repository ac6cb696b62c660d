"""The kinds of block, one file each.

base          what a kind says of itself
separable     MobileNet V1: a filter for each channel, pointwise
mobilenet_v2  more channels, a filter for each, fewer channels
fire          SqueezeNet: few channels, outputs that see one position and such that see the kernel
shuffle       ShuffleNet: pointwise Convs in groups, channels dealt between
shuffle_v2    ShuffleNet V2: two branches
xception      pointwise, a filter for each output
effnet        EffNet: few channels, one axis after the other
grouped       deep roots: a Conv in groups, pointwise
table         all of them, by name
"""
