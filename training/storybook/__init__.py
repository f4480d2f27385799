"""The storybook model: its grammar, corpus, training, measuring and model card."""
