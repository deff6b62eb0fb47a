"""Second-order Taylor expansion of the loss (Chen, Wang, Cheng, "Towards Mixed-Precision Quantization of Neural
Networks via Constrained Optimization", ICCV 2021).

    dL_i(b) = 1/(2N) sum_n <g_in, Q_b(w_i) - w_i>^2          g_in = grad_{w_i} of -ln p_y(x_n)

p is the softmax output and y the label, or the model's own top class where the samples have none. The first-order
term vanishes at a trained optimum, and sum_n g g^T stands for the Hessian (Gauss-Newton in output probabilities).

For any other network the loss is ||W (y' - y)||^2, the mean relative squared error of the heads
(`evaluate/heads.py`), whose Gauss-Newton form is the same formula with g_in = grad of <r_n, W y(x_n)>, r_n random
signs: E_r <r, W J dw>^2 = ||W J dw||^2.
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.artifacts import Float64, Scores


def mpqco(projections: Float64, bits: tuple[int, ...], note: str = "") -> Scores:
    """Scores from the inner products <g_in, Q_b(w_i) - w_i>, float64 (N, L, B)."""
    loss = 0.5 * np.square(projections).mean(axis=0)
    return Scores(metric="mpqco", bits=bits, loss=loss, importance=loss.max(axis=1), note=note)
