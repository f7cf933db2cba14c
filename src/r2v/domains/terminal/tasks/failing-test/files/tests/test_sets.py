import unittest

from intervals import gaps, intersect, length, normal


class Sets(unittest.TestCase):
    def test_touching_parts_become_one(self):
        self.assertEqual(normal([(3, 4), (1, 2), (2, 3)]), [(1, 4)])

    def test_a_part_within_another_changes_nothing(self):
        self.assertEqual(normal([(0, 10), (2, 3)]), [(0, 10)])

    def test_what_is_covered_twice_counts_once(self):
        self.assertEqual(length([(0, 4), (2, 6)]), 6)

    def test_intersect(self):
        self.assertEqual(intersect([(0, 5), (8, 9)], [(4, 8)]), [(4, 5)])

    def test_gaps(self):
        self.assertEqual(gaps([(2, 3)], 0, 5), [(0, 2), (3, 5)])
