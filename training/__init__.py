"""Makes what the package ships; run from a checkout, it is in the source archive and not the wheel.

``python -m training.storybook.train`` makes the storybook model and its classifiers, ``python -m
training.twists`` the learned twists; ``training.search`` finds learning rates and batch sizes.
"""
