"""Starts vLLM servers and proves which attention backend each one runs. Measures nothing."""
