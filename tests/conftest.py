"""The examples of property tests are the same in every run: a commit is judged by its own code, not by the draw.

`make fuzz` looks for new ones: `pytest --hypothesis-profile=search`.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True, print_blob=False)
settings.register_profile("search", print_blob=True)
settings.load_profile("same")
