"""Runtimes: who carries out the plans. With `jobs`, the only room that imports Ray."""
