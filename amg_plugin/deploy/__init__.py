"""Models outside training: files for other runtimes, and features from either kind of file.

``exported_file``, ``images``, ``runtimes`` and ``extractor`` need numpy and Pillow besides the file's runtime, and
import neither torch nor torchreid unless the file asks for it. The rest writes files and needs PyTorch.
"""
