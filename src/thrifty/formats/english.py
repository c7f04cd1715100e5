"""English words that mean no class: to be put in the place of answers."""
from __future__ import annotations

_LISTED = """
acorn alley anchor ankle apron arrow attic autumn axle bacon badge bagel bakery ballet bamboo banner barley barrel basin basket
beacon beaver bench berry bishop blanket blossom bonnet bottle boulder bracelet branch brass breeze brick bridge bristle bucket
buckle bugle bundle butter button cabin cable cactus camel candle canoe canvas canyon captain caravan carpet carrot castle cedar
cellar cello chalk chapel cherry chimney chisel cider cinder circus clover cobble coconut collar comet compass copper coral cotton
cradle crater cricket crystal cupboard curtain cushion dagger daisy dancer denim desert dessert diamond dinner dolphin donkey
dragon drawer drizzle dune eagle easel echo elbow ember engine envelope fabric falcon feather fence ferry fiddle figure finch
flannel flute forest fossil fountain freckle furnace gallery garden garlic garment gazelle ginger glacier glove goblet granite
grape gravel guitar hammer hammock harbor harvest hazel hedge helmet hermit hinge honey horizon hurdle icicle island ivory jacket
jasmine jelly jersey jigsaw jungle kernel kettle kitchen ladder lagoon lantern lattice lavender leather lemon lettuce linen lizard
lobster locket lumber magnet mango mantle maple marble market meadow melon meteor mirror mitten monsoon mosaic mountain muffin
mustard napkin nectar needle nickel noodle nugget nutmeg oasis olive onion orchard otter oven oyster paddle palace pancake parcel
parrot pasture pebble pelican pepper petal piano pickle pigeon pillow piston pitcher plaza plum pocket pollen pony poppy porch
pottery prairie pretzel pumpkin puzzle pyramid quarry quilt rabbit radish raft raisin raven reef ribbon river rocket rooster
saddle sailor salmon sandal satchel saucer scarf shovel shutter silver skillet spider spinach sponge spoon squirrel stable statue
stirrup stove sugar summit sunset tailor tangerine teapot temple thimble thistle thunder timber toast tomato tower trumpet tulip
tunnel turnip turtle umbrella valley vanilla velvet village vinegar violin waffle wagon walnut weasel whisker willow window winter
yogurt zebra zipper
"""
WORDS = tuple(_LISTED.split())
