"""`embed` beside what others would serve the same checkpoint with: same texts, cores and load.

Each peer has a virtual environment of its own, made on demand under build/peers/. Turn by turn one
is started, asked, put under load and stopped, so that none takes anything from another.
"""
