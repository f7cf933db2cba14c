from intervals.sets import gaps, intersect, length, normal

__all__ = ["gaps", "intersect", "length", "normal"]
