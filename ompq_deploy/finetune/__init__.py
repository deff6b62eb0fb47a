"""Quantization-aware training of a planned network, from integers to better integers.

`run.py` is the verb: from a plan to the files trained. `settings.py` says what can be chosen, `task.py` turns that into
what `loop.py` trains. `data.py` and `batches.py` make batches, `start.py` the network, `objective.py` the
loss, `schedule.py` and `optimizer.py` the steps, `held_out.py` the judgement; `distributed.py` lets several
processes share the work. torch loads when `run.finetune` is called.
"""
