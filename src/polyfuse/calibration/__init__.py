"""Calibration of predictions on held-out rows: temperature, vector, beta, isotonic.

Members are pooled first and the pool is calibrated, unless asked otherwise: the mean of well
calibrated members is under-confident, and one temperature below 1 sharpens it.
"""

from polyfuse.calibration.curves import Beta, Isotonic
from polyfuse.calibration.pool import CALIBRATORS, CalibratedPool, Calibrator
from polyfuse.calibration.scaling import Temperature, Vector

__all__ = [
    "CALIBRATORS",
    "Beta",
    "CalibratedPool",
    "Calibrator",
    "Isotonic",
    "Temperature",
    "Vector",
]
