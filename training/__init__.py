"""Makes what the package ships: the storybook model, its classifiers, and the learned twists."""
