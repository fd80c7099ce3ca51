"""Models outside training: files for other runtimes, and features from either kind of file.

``info``, ``images``, ``runtimes`` and ``extractor`` need numpy and Pillow beside the runtime of the file, and import
neither torch nor torchreid unless the file asks for it. The rest writes files and needs PyTorch.
"""
