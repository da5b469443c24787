def run(c: list[str]) -> int: return 0
