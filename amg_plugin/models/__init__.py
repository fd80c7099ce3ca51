"""Networks: timm ViTs made prunable, re-ID head, weight files."""
