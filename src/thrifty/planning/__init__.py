"""Plan: what a training would take, by rehearsing one step of it on tensors without numbers.

    print(thrifty.plan("minilm", ["lora", "full"], memory="1GiB", length=128))
"""
from thrifty.planning.forecast import Forecast, Remedy, Time
from thrifty.planning.forecasting import Plan, plan
from thrifty.planning.machine import Machine
from thrifty.planning.memory import Memory

__all__ = ["Forecast", "Machine", "Memory", "Plan", "Remedy", "Time", "plan"]
