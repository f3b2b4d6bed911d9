"""What others published, in percent of the test images, each number with where it was read."""

from __future__ import annotations

from diracnets.studies.study import Published

REMEMBERED = "remembered from the paper, not checked"
QUOTED = "quoted from the paper by another"
WIDE_RESNET = "its README, median of 5"

ERRORS = {  # by data and network
    ("cifar10", "vgg-16"): Published(6.09, 0.11, REMEMBERED),
    ("cifar10", "diracnet-28-5"): Published(5.16, 0.14, REMEMBERED),
    ("cifar10", "diracnet-28-10"): Published(4.75, 0.16, REMEMBERED),
    ("cifar10", "resnet-1001"): Published(4.92, None, "its own paper has 4.62"),
    ("cifar10", "wrn-28-10"): Published(4.00, None, WIDE_RESNET),
    ("cifar100", "vgg-16"): Published(25.92, 0.09, REMEMBERED),
    ("cifar100", "diracnet-28-5"): Published(23.44, 0.14, REMEMBERED),
    ("cifar100", "diracnet-28-10"): Published(21.54, None, QUOTED),
    ("cifar100", "resnet-1001"): Published(22.71, None, "its own paper"),
    ("cifar100", "wrn-28-10"): Published(19.25, None, WIDE_RESNET),
}
