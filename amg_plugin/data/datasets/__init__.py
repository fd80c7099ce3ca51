"""The plugin's data sets, as classes of torchreid."""

from amg_plugin import compat

# First of all: registering, which follows its import, loads the modules here, so none of them may be half-way by then.
compat.torchreid()
