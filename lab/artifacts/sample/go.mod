module groundplane.internal/artifacts/sample

go 1.26.7

tool groundplane.internal/artifacts/sample
