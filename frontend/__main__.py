from frontend.main import main

main()
