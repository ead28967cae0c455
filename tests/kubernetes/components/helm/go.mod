module ringfold.dev/tests/kubernetes/components/helm

go 1.24.0
