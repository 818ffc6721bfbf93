"""polyfuse makes one better predictor out of several PyTorch models, and shows what was gained.

The public names, grouped by file, are in `__init__.pyi` beside this file; they load when first
used, so that `polyfuse --help` answers without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
