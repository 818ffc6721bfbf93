#!/bin/sh
# Make the peers' environments, and import every peer:
#
#   sh benchmarks/make_peers.sh PYTHON FOLDER [MERGEKIT_FOLDER]
#
# mergekit has a folder of its own: its transformers does not go with the torchvision here.
set -eu

python=$1
folder=$2
mergekit=${3:-$folder-mergekit}
here=$(cd "$(dirname "$0")" && pwd)

"$python" -m venv --without-pip "$folder"
"$python" -m pip --python "$folder/bin/python" install -q -r "$here/peers.txt"
# Only its greedy selection is compared, which needs none of its many requirements.
"$python" -m pip --python "$folder/bin/python" install -q --no-deps \
    autogluon.core==1.6.3 autogluon.common==1.6.3 autogluon.features==1.6.3

"$python" -m venv --without-pip "$mergekit"
"$python" -m pip --python "$mergekit/bin/python" install -q mergekit==0.1.5 torch==2.13.0

"$folder/bin/python" "$here/peers.py" torchensemble timm ema_pytorch ttach ensemble_boxes \
    sklearn torchvision autogluon.core
"$mergekit/bin/python" "$here/peers.py" mergekit
