"""A little text in two languages, as ids below 360."""

IDS = {
    "en": [[(7 * i + j * j) % 360 for j in range(80)] for i in range(3)],
    "sw": [[(11 * i + 5 * j) % 360 for j in range(50)] for i in range(2)],
}
