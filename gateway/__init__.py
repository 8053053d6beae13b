"""OpenAI's interface to the models of a Triton: no state, any number of them beside each other."""
