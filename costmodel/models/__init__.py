"""Models: from a name, a file or a program to a module and example inputs.

    from costmodel.models import load_model

    loaded = load_model("timm:mobilenetv2_100", mode="train", batch=16)
    loaded.model(*loaded.args, **loaded.kwargs)

What a name can be:

* ``timm:NAME``, ``torchvision:NAME``: those libraries' architectures, random weights, at their own input size;
* ``transformers:NAME``: an architecture of `transformers_zoo`, built from its published dimensions without a hub, or a
  checkpoint folder on this disk (``transformers:/models/my-mamba``, safetensors only);
* a bare name: a definition of our own (``mlp-small``, ``caffe-resnet50``; ``costmodel models own`` lists them);
* ``path/file.py:function``: yours, see below;
* ``program.pt2``: what ``torch.export.save`` wrote.

Settings of a constructor follow after commas: ``timm:vit_tiny_patch16_224,num_classes=10``,
``transformers:bert-base,num_hidden_layers=2,attn_implementation=eager``.

**Your own model** is a function in a file that returns the module and example inputs::

    # nets/mine.py
    import torch

    def tiny(batch=1, input_size=(3, 64, 64), width=16):
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, width, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(10)
        )
        x = torch.randn(batch, *input_size)
        net(x)                                   # lazy layers get their shapes
        return net, x

and is called ``nets/mine.py:tiny`` or ``nets/mine.py:tiny,width=32``. Inputs are a tensor, a tuple or list of
positional arguments, a dict of keyword arguments, or a pair (tuple, dict). If the function has a parameter called
``batch``, ``input_size``, ``seq``, ``mode``, ``dtype`` or ``device``, it gets what the command line says; an option
that it has no parameter for is refused, because it would be ignored in silence. The file is run: load only files that
you trust.
(``.pt2`` files, checkpoint folders and traces are data and run nothing.)

**A model of our own** is one more file in this folder with a dict ``MODELS`` of name to `own.Own`; nothing else has to
be edited. **A transformers architecture** is one more line in `transformers_zoo.ARCHITECTURES`.

`resolve_alias` says which model a published table means by a name, or why it cannot be rebuilt.
"""

from .aliases import resolve_alias
from .inputs import Loaded
from .load import architectures, available, load_model

__all__ = ["Loaded", "architectures", "available", "load_model", "resolve_alias"]
